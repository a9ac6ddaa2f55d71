"use strict";
// The losses of the family, as the page "What would my loss do?" computes them: what asl/family.py and asl/posterior.py say,
// in JavaScript. tests/test_site.py compares the two. Words and letters are the cheat sheet's: a score p = sigmoid(z), q = 1-p;
// a pull is the size of a gradient. Pulls are kept as logarithms, so that their quotient is right where both are tiny.

// A logit and what losses are made of, exact at both ends
function at(z) {
  const total = Math.log1p(Math.exp(-Math.abs(z)));
  return {
    z,
    p: 1 / (1 + Math.exp(-z)),
    q: 1 / (1 + Math.exp(z)),
    minusLogP: total + Math.max(-z, 0),
    minusLogQ: total + Math.max(z, 0),
  };
}

// The negative of a loss that treats both sides alike is its positive at -z
const turned = x => at(-x.z);

const sigmoid = z => at(z).p;
const logit = p => Math.log(p) - Math.log1p(-p);

// Each side of a loss is a function of settings and x = at(z) to {loss, logPull}

function focal(x, gamma, detached) {
  const slope = detached ? x.q : x.q + gamma * x.p * x.minusLogP;
  return {
    loss: Math.exp(-gamma * x.minusLogQ) * x.minusLogP,
    logPull: -gamma * x.minusLogQ + Math.log(slope),
  };
}

function asymmetric(x, gamma, clip, detached) {
  const shifted = x.p - clip;
  if (shifted <= 0) return {loss: 0, logPull: -Infinity};
  const minusLog = x.p > .5 ? -Math.log(x.q + clip) : -Math.log1p(-shifted);      // of 1 - shifted
  const logShifted = clip ? Math.log(shifted) : -x.minusLogP;
  const focus = detached ? 0 : gamma * minusLog / shifted;
  return {
    loss: Math.exp(gamma * logShifted) * minusLog,
    logPull: gamma * logShifted - x.minusLogP - x.minusLogQ + Math.log(1 / (x.q + clip) + focus),
  };
}

function poly(x, epsilon) {
  return {
    loss: x.minusLogP + epsilon * x.q,
    logPull: -x.minusLogQ + Math.log(x.q + (1 + epsilon) * x.p),
  };
}

function power(x, k) {
  return {
    loss: k ? -Math.expm1(-k * x.minusLogP) / k : x.minusLogP,
    logPull: -k * x.minusLogP - x.minusLogQ,
  };
}

function hill(x, lam) {
  return {
    loss: (lam - 1 + x.q) * x.p ** 2,
    logPull: -2 * x.minusLogP - x.minusLogQ + Math.log(2 * lam - 3 + 3 * x.q),
  };
}

// -log p - q; where q is small, where the two cancel, by its series
function beyondLinear(x) {
  if (x.q > .1) return x.minusLogP - x.q;
  let sum = 0;
  for (let n = 20; n >= 2; n--) sum += x.q ** n / n;
  return sum;
}

function polynomial(x, gamma, first, second, detached) {
  const loss = beyondLinear(x) + x.q * (1 - first - second / 2 * x.q);
  const slope = x.q * (x.q + x.p * (1 - first - second * x.q));
  const focus = -gamma * x.minusLogQ;
  return {
    loss: Math.exp(focus) * loss,
    logPull: focus + Math.log(detached ? slope : slope + gamma * x.p * loss),
  };
}

// ASL's negative times a factor from the Hill loss
function robust(x, gamma, clip, lam, detached) {
  const inner = asymmetric(x, gamma, clip, detached);
  const outer = hill(x, lam);
  const rest = lam - 1 + Math.max(x.p - clip, 0);
  const factor = outer.loss * rest;
  const slope = Math.exp(outer.logPull) * rest + outer.loss * x.p * x.q;
  return {
    loss: inner.loss * factor,
    logPull: Math.log(Math.exp(inner.logPull) * factor + inner.loss * slope),
  };
}

// Names, defaults and ranges are those of the Python package. The key of a loss stands in the page's address
const LOSSES = {
  bce: {
    title: "Binary cross-entropy", module: "asl.family", name: "CrossEntropy", settings: {},
    positive: (s, x) => power(x, 0),
    negative: (s, x) => power(turned(x), 0),
  },
  focal: {
    title: "Focal loss", module: "asl.family", name: "FocalLoss", settings: {gamma: 2},
    positive: (s, x) => focal(x, s.gamma, false),
    negative: (s, x) => focal(turned(x), s.gamma, false),
  },
  asl: {
    title: "Asymmetric loss (ASL)", module: "asl", name: "AsymmetricLossMultiLabel",
    settings: {gamma_neg: 4, gamma_pos: 1, clip: .05, disable_torch_grad_focal_loss: false},
    positive: (s, x) => focal(x, s.gamma_pos, s.disable_torch_grad_focal_loss),
    negative: (s, x) => asymmetric(x, s.gamma_neg, s.clip, s.disable_torch_grad_focal_loss),
  },
  poly: {
    title: "Poly-1", module: "asl.family", name: "PolyLoss", settings: {epsilon: 2},
    positive: (s, x) => poly(x, s.epsilon),
    negative: (s, x) => poly(turned(x), s.epsilon),
  },
  gce: {
    title: "Generalised cross-entropy (GCE)", module: "asl.family", name: "GeneralizedCrossEntropy",
    settings: {k_pos: .7, k_neg: .7},
    positive: (s, x) => power(x, s.k_pos),
    negative: (s, x) => power(turned(x), s.k_neg),
  },
  hill: {
    title: "Hill loss", module: "asl.family", name: "HillLoss", settings: {lam: 1.5, margin: 1, gamma: 2},
    positive: (s, x) => focal(at(x.z - s.margin), s.gamma, false),
    negative: (s, x) => hill(x, s.lam),
  },
  apl: {
    title: "Asymmetric polynomial loss (APL)", module: "asl.family", name: "AsymmetricPolynomialLoss",
    settings: {gamma_neg: 4, gamma_pos: 0, clip: .05, epsilon_1: 1, epsilon_2: -2.5, disable_torch_grad_focal_loss: true},
    positive: (s, x) => polynomial(x, s.gamma_pos, s.epsilon_1, s.epsilon_2, s.disable_torch_grad_focal_loss),
    negative: (s, x) => asymmetric(x, s.gamma_neg, s.clip, s.disable_torch_grad_focal_loss),
  },
  ral: {
    title: "Robust asymmetric loss (RAL)", module: "asl.family", name: "RobustAsymmetricLoss",
    settings: {gamma_neg: 4, gamma_pos: 0, clip: .05, lam: 1.5, epsilon_1: 1, epsilon_2: -2.5, disable_torch_grad_focal_loss: false},
    positive: (s, x) => polynomial(x, s.gamma_pos, s.epsilon_1, s.epsilon_2, s.disable_torch_grad_focal_loss),
    negative: (s, x) => robust(x, s.gamma_neg, s.clip, s.lam, s.disable_torch_grad_focal_loss),
  },
};

// From minus this logit to this an answer is looked for
const FARTHEST = 300;

// A loss with its settings, as a thing that can be asked
function makeLoss(key, settings, posWeight = 1) {
  const {positive, negative} = LOSSES[key];
  const sides = z => [positive(settings, at(z)), negative(settings, at(z))];

  // Log-odds of the probability that a logit means: where the pulls of both sides balance
  function logOdds(z) {
    const [pos, neg] = sides(z);
    return neg.logPull - pos.logPull - Math.log(posWeight);
  }

  // The logit that means a probability. If none does: refused, the most or the least that a score can mean
  function logitOf(probability) {
    const wanted = logit(probability);
    const most = logOdds(FARTHEST);
    if (wanted >= most) return {logit: NaN, refused: "most", bound: sigmoid(most)};
    let low = -FARTHEST;
    let high = FARTHEST;
    for (let i = 0; i < 90; i++) {
      const middle = (low + high) / 2;
      if (logOdds(middle) < wanted) low = middle; else high = middle;
    }
    const found = logOdds(high);
    if (found > wanted + 1e-3) return {logit: high, refused: "least", bound: sigmoid(found)};
    return {logit: high};
  }

  // Whether a higher logit never means less
  function increases() {
    let before = -Infinity;
    for (let z = -30; z <= 30; z += .05) {
      const now = sigmoid(logOdds(z));
      if (!(now >= before - 1e-9)) return false;
      before = now;
    }
    return true;
  }

  return {
    positive: z => ({loss: posWeight * sides(z)[0].loss, pull: posWeight * Math.exp(sides(z)[0].logPull)}),
    negative: z => ({loss: sides(z)[1].loss, pull: Math.exp(sides(z)[1].logPull)}),
    posterior: z => sigmoid(logOdds(z)),
    most: sigmoid(logOdds(FARTHEST)),
    logitOf,
    increases,
  };
}
