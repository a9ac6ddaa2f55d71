"use strict";
// The page "What would my loss do?". What is chosen is one object, `chosen`. Controls change it, the address keeps it, and
// show() draws all that follows from it. losses.js has the mathematics.

// Each setting: its range, how its slider is divided (the number beside it may be anything in the range), and what it is
const SETTINGS = {
  gamma_neg: {min: 0, max: 10, step: .25, about: "focusing of absent labels: more turns down the easy ones"},
  gamma_pos: {min: 0, max: 10, step: .25, about: "focusing of present labels"},
  gamma: {min: 0, max: 10, step: .25, about: "focusing: more turns down what is easy"},
  clip: {min: 0, max: .5, step: .01, about: "margin: an absent label that scores less costs nothing"},
  epsilon: {min: -1, max: 8, step: .25, about: "added to the first coefficient of the series"},
  k_pos: {min: 0, max: 1, step: .05, about: "present labels: 0 is cross-entropy, 1 the absolute error"},
  k_neg: {min: 0, max: 1, step: .05, about: "absent labels: 0 is cross-entropy, 1 the absolute error"},
  lam: {min: 1.5, max: 4, step: .1, about: "height of the hill"},
  margin: {min: -4, max: 4, step: .25, about: "subtracted from the logit of present labels"},
  epsilon_1: {min: -2, max: 1, step: .25, about: "first coefficient of present labels"},
  epsilon_2: {min: -4, max: 0, step: .25, about: "second coefficient of present labels"},
  pos_weight: {min: .01, max: 1000, scale: "log", about: "multiplies the loss of present labels"},
  prior: {min: .0001, max: .5, scale: "log", about: "share of the labels that are present"},
  cost: {min: .01, max: 100, scale: "log", about: "what a false alarm costs, in misses"},
  score: {min: .0001, max: .9999, scale: "logit", about: "the score of one label: drag in a picture, or here"},
};
const OPTION = "disable_torch_grad_focal_loss";     // the one setting that is yes or no
const COMMON = {pos_weight: 1, prior: .02, cost: 1, score: .5, axis: "score"};

const SCALES = {
  linear: {to: x => x, from: x => x},
  log: {to: Math.log, from: Math.exp},
  logit: {to: logit, from: sigmoid},
};
const scaleOf = name => SCALES[SETTINGS[name].scale ?? "linear"];

// ---- What is chosen, and the address

let chosen;

function defaults(key) {
  return {loss: key, ...LOSSES[key].settings, ...COMMON};
}

// The text after # in an address; what is unknown or out of range there is left out
function readAddress(text) {
  const given = new URLSearchParams(text.replace(/^#/, ""));
  const key = Object.hasOwn(LOSSES, given.get("loss")) ? given.get("loss") : "asl";
  const read = defaults(key);
  for (const [name, value] of given) {
    if (!Object.hasOwn(read, name) || name === "loss") continue;
    if (name === OPTION) read[name] = value === "true";
    else if (name === "axis") read[name] = value === "logit" ? "logit" : "score";
    else if (inRange(name, value)) read[name] = Number(value);
  }
  return read;
}

function inRange(name, text) {
  const {min, max} = SETTINGS[name];
  return text.trim() !== "" && Number(text) >= min && Number(text) <= max;
}

function address() {
  return "#" + new URLSearchParams(chosen);
}

// A number as people write it
function short(value, digits = 3) {
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "none";
  if (value !== 0 && Math.abs(value) < 1e-4) return value.toExponential(digits - 1);
  return String(Number(value.toPrecision(digits)));
}

// ---- Controls

function option(key) {
  return `<option value="${key}"${key === chosen.loss ? " selected" : ""}>${LOSSES[key].title}</option>`;
}

function control(name) {
  const {min, max, about} = SETTINGS[name];
  return `<div class="setting">
    <label for="slide-${name}">${name}</label>
    <input type="range" id="slide-${name}" data-slide="${name}" min="0" max="1" step="any" aria-describedby="about-${name}">
    <input type="number" data-number="${name}" min="${min}" max="${max}" step="any" aria-label="${name}, as a number">
    <small id="about-${name}">${about}</small>
  </div>`;
}

function tick() {
  return `<label class="tick"><input type="checkbox" data-option> ${OPTION}
    <small>the gradient takes focusing factors for constants</small></label>`;
}

function axes() {
  const choice = kind => `<label class="tick"><input type="radio" name="axis" value="${kind}"> ${kind}</label>`;
  return `<fieldset class="row"><legend>Pictures over the</legend>${choice("score")}${choice("logit")}</fieldset>`;
}

function controls() {
  const own = Object.keys(LOSSES[chosen.loss].settings);
  return `<fieldset><legend>The loss</legend>
      <label class="setting" for="choose-loss"><span>loss</span>
        <select id="choose-loss">${Object.keys(LOSSES).map(option).join("")}</select></label>
      ${own.filter(name => name !== OPTION).map(control).join("")}
      ${own.includes(OPTION) ? tick() : ""}
      ${control("pos_weight")}
    </fieldset>
    <div><fieldset><legend>The task</legend>${control("prior")}${control("cost")}</fieldset>
      <fieldset><legend>One label</legend>${control("score")}</fieldset>
      ${axes()}
      <p class="row"><button type="button" data-reset>Defaults of this loss</button>
        <a data-link href="#">A link to these settings</a></p></div>`;
}

// A slider's place, from 0 to 1, and the value there. Values that have a step keep it
function place(name, value) {
  const {min, max} = SETTINGS[name];
  const {to} = scaleOf(name);
  return (to(value) - to(min)) / (to(max) - to(min));
}

function valueAt(name, where) {
  const {min, max, step} = SETTINGS[name];
  const {to, from} = scaleOf(name);
  const value = from(to(min) + where * (to(max) - to(min)));
  const rounded = step ? Math.round(value / step) * step : value;
  return Math.min(max, Math.max(min, Number(rounded.toPrecision(step ? 6 : 3))));
}

// An arrow key moves a slider by its setting's step, or by a hundredth of its way
function keyStep(name) {
  const {min, max, step} = SETTINGS[name];
  return step ? step / (max - min) : .01;
}

// Sliders and numbers say what is chosen; the one that is being typed in is left alone
function fill(page) {
  for (const slider of page.querySelectorAll("[data-slide]")) {
    const name = slider.dataset.slide;
    slider.step = keyStep(name);
    slider.value = place(name, chosen[name]);
    slider.setAttribute("aria-valuetext", short(chosen[name], 4));
  }
  for (const box of page.querySelectorAll("[data-number]"))
    if (box !== document.activeElement) box.value = chosen[box.dataset.number];
  for (const box of page.querySelectorAll("[data-option]")) box.checked = chosen[OPTION];
  for (const button of page.querySelectorAll("[name=axis]")) button.checked = button.value === chosen.axis;
  page.querySelector("[data-link]").href = address();
}

// ---- Pictures

const WIDTH = 420, HEIGHT = 270;
const FRAME = {left: 58, right: 408, top: 10, bottom: 228};
const MOST_LOGIT = 8;

// The logits at which curves are drawn: evenly over what is the horizontal axis
function logits() {
  const steps = 240;
  const shares = Array.from({length: steps + 1}, (_, i) => i / steps);
  if (chosen.axis === "logit") return shares.map(share => MOST_LOGIT * (2 * share - 1));
  return shares.map(share => logit(.0005 + .999 * share));
}

function across(z) {
  const share = chosen.axis === "logit" ? (z + MOST_LOGIT) / (2 * MOST_LOGIT) : sigmoid(z);
  return FRAME.left + Math.min(1, Math.max(0, share)) * (FRAME.right - FRAME.left);
}

function up(y, top) {
  return FRAME.bottom - y / top * (FRAME.bottom - FRAME.top);
}

// The next round number that is large enough
function roomFor(most) {
  const ten = 10 ** Math.floor(Math.log10(most));
  return ten * [1, 1.2, 1.6, 2, 3, 4, 6, 8, 10].find(times => times * ten >= most * .999);
}

function path(curve, top) {
  const points = logits().map(z => `${across(z).toFixed(1)},${up(Math.min(curve(z), 3 * top), top).toFixed(2)}`);
  return "M" + points.join("L");
}

function grid(top, unit) {
  const marks = chosen.axis === "logit" ? [-8, -4, 0, 4, 8] : [0, .25, .5, .75, 1];
  const x = mark => FRAME.left + (mark - marks[0]) / (marks[4] - marks[0]) * (FRAME.right - FRAME.left);
  const below = marks.map(mark => `<line class="grid" x1="${x(mark)}" x2="${x(mark)}" y1="${FRAME.top}" y2="${FRAME.bottom}"/>
    <text x="${x(mark)}" y="${FRAME.bottom + 17}" text-anchor="middle">${mark}</text>`);
  const beside = [0, .25, .5, .75, 1].map(part => {
    const y = up(part * top, top);
    return `<line class="grid" x1="${FRAME.left}" x2="${FRAME.right}" y1="${y}" y2="${y}"/>
      <text x="${FRAME.left - 6}" y="${y + 4}" text-anchor="end">${short(part * top)}</text>`;
  });
  const name = `<text x="${(FRAME.left + FRAME.right) / 2}" y="${HEIGHT - 8}" text-anchor="middle">${chosen.axis}</text>`;
  return below.join("") + beside.join("") + name;
}

// A picture: a title, curves [kind, function of a logit], dots [kind, logit, height], and what it shows in words
function picture({id, title, curves, dots, top, words}) {
  const lines = curves.map(([kind, curve]) => `<path class="${kind}" d="${path(curve, top)}"/>`);
  const at = across(logit(chosen.score));
  const cursor = `<line class="cursor" x1="${at}" x2="${at}" y1="${FRAME.top}" y2="${FRAME.bottom}"/>`;
  const marks = dots.filter(([, z, y]) => Number.isFinite(z) && y <= top).map(([kind, z, y]) => kind === "negative"
    ? `<rect class="negative dot" x="${across(z) - 4}" y="${up(y, top) - 4}" width="8" height="8"/>`
    : `<circle class="${kind} dot" cx="${across(z)}" cy="${up(y, top)}" r="4.5"/>`);
  return `<figure><figcaption>${title}</figcaption>
    <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${words}" data-picture="${id}" data-top="${top}">
      <clipPath id="frame-${id}"><rect x="${FRAME.left}" y="${FRAME.top - 2}" width="${FRAME.right - FRAME.left}"
        height="${FRAME.bottom - FRAME.top + 4}"/></clipPath>
      ${grid(top)}${cursor}<g clip-path="url(#frame-${id})">${lines.join("")}</g>${marks.join("")}
    </svg></figure>`;
}

function pictures(loss, found) {
  const plain = makeLoss("bce", {});
  const z = logit(chosen.score);
  const {pos, neg, start, cut} = found;
  const highest = curves => Math.max(...logits().flatMap(z => curves.map(curve => curve(z))));
  const pull = [["positive", z => loss.positive(z).pull], ["negative", z => loss.negative(z).pull]];
  const together = [["positive", z => chosen.prior * loss.positive(z).pull],
    ["negative", z => (1 - chosen.prior) * loss.negative(z).pull]];
  const shown = [
    {id: "loss", title: "Loss", top: 4,
      curves: [["plain", z => plain.positive(z).loss], ["plain", z => plain.negative(z).loss],
        ["positive", z => loss.positive(z).loss], ["negative", z => loss.negative(z).loss]],
      dots: [["positive", z, pos.loss], ["negative", z, neg.loss]],
      words: `Loss over the ${chosen.axis}: at a score of ${short(chosen.score)} it is ${short(pos.loss)} if the label is
        present and ${short(neg.loss)} if it is absent`},
    {id: "pull", title: "Pull at the logit: size of the gradient", top: roomFor(Math.max(1, highest(pull.map(o => o[1])))),
      curves: [["plain", z => plain.positive(z).pull], ["plain", z => plain.negative(z).pull], ...pull],
      dots: [["positive", z, pos.pull], ["negative", z, neg.pull]],
      words: `Pull over the ${chosen.axis}: at a score of ${short(chosen.score)} it is ${short(pos.pull)} if the label is
        present and ${short(neg.pull)} if it is absent`},
    {id: "together", title: `Pull of all labels together, ${short(100 * chosen.prior)}% of them present`,
      top: roomFor(Math.max(1e-6, Math.min(highest([together[0][1]]), highest([together[1][1]])) * 2)),
      curves: together,
      dots: start.refused ? [] : [["point", start.logit, chosen.prior * loss.positive(start.logit).pull]],
      words: `Pull of all labels together over the ${chosen.axis}. ${sayStart(start)}`},
    {id: "meaning", title: "What a score means", top: 1,
      curves: [["plain", sigmoid], ["line", loss.posterior]],
      dots: cut.refused === "most" ? [] : [["point", cut.logit, chosen.cost / (1 + chosen.cost)]],
      words: `Probability that a score means: at a score of ${short(chosen.score)} it is ${short(loss.posterior(z))}`},
  ];
  return shown.map(picture).join("");
}

// ---- What is said

// A number that a test, or anybody's script, can read with all its digits
function number(name, value, digits = 3) {
  return `<data data-name="${name}" value="${value}">${short(value, digits)}</data>`;
}

function sayStart({logit, refused, bound}) {
  if (refused) return `No score of this loss means ${refused === "most" ? "so much" : "so little"} as the prior: at
    ${refused} <data data-name="start_bound" value="${bound}">${short(bound)}</data>.`;
  return `The pulls of all labels balance at a logit of ${short(logit)}, a score of ${short(sigmoid(logit))}: start the last bias there.`;
}

function sayCut(probability, {logit, refused, bound}) {
  const say = `Say yes from a probability of ${number("probability", probability)}`;
  if (refused === "most") return `${say}: no score of this loss means so much. At most
    ${number("cut_bound", bound)}, so it never says yes.`;
  return `${say}, which is a score of <strong>${number("cut", sigmoid(logit))}</strong>${refused
    ? `, where the margin ends: the least that a score above it means is ${number("cut_bound", bound)}` : ""}.`;
}

function readings(loss, {pos, neg, start, cut, even, increases}) {
  const plain = makeLoss("bce", {});
  const z = logit(chosen.score);
  const row = (mark, name, of, ce) => `<tr><th scope="row"><span class="mark ${name}">${mark}</span> ${name === "positive" ? "present" : "absent"}</th>
    <td>${number(`${name}_loss`, of.loss)}</td><td>${number(`${name}_pull`, of.pull)}</td><td>${short(of.pull / ce.pull, 2)}</td></tr>`;
  const undecided = (1 - chosen.prior) * loss.negative(0).pull / (chosen.prior * loss.positive(0).pull);
  const first = `<table><caption>A label with a score of ${short(chosen.score)} (a logit of ${short(z)})</caption>
    <thead><tr><th scope="col">it is</th><th scope="col">loss</th><th scope="col">pull</th><th scope="col">times cross-entropy's pull</th></tr></thead>
    <tbody>${row("●", "positive", pos, plain.positive(z))}${row("■", "negative", neg, plain.negative(z))}</tbody></table>`;
  if (!increases) return `${first}<p data-refused>With these settings a higher score would mean less, so no score means a
    probability: <code>posterior</code> and <code>threshold</code> are refused.</p>`;
  return `${first}<ul>
    <li>This score means a probability of <strong>${number("posterior", loss.posterior(z))}</strong>.
      Even odds are ${even.refused === "most" ? "reached by no score"
        : `at a score of ${number("even", sigmoid(even.logit))}`}; the most that a score can mean is ${number("most", loss.most)}.</li>
    <li>A false alarm costs ${short(chosen.cost)} ${chosen.cost === 1 ? "miss" : "misses"}.
      ${sayCut(chosen.cost / (1 + chosen.cost), cut)}</li>
    <li>${short(100 * chosen.prior)}% of the labels are present. Where all score .5, the absent ones pull
      ${number("balance", undecided)} times as hard, all together. ${sayStart(start)}
      ${start.refused ? "" : `<data data-name="start" value="${start.logit}"></data>`}</li></ul>`;
}

// The same in Python, without what is refused there
function python({start, cut, increases}) {
  const {module, name, settings} = LOSSES[chosen.loss];
  const written = value => typeof value === "boolean" ? (value ? "True" : "False") : String(value);
  const given = Object.keys(settings).filter(key => key !== OPTION || chosen[key] !== settings[key]);
  if (chosen.pos_weight !== 1) given.push("pos_weight");
  const call = `${name}(${given.map(key => `${key}=${written(chosen[key])}`).join(", ")})`;
  const lines = [`from ${module} import ${name}`, "", `loss = ${call.length > 66 ? call.replace("(", "(\n    ") : call}`];
  if (!increases) return lines.join("\n");
  lines.push("probability = loss.posterior(logits)");
  if (cut.refused !== "most") lines.push(`cut = loss.threshold(${chosen.cost} / (1 + ${chosen.cost}))`);
  if (!start.refused) lines.push(`bias = loss.prior_logit(${chosen.prior})`);
  return lines.join("\n");
}

// ---- The page

// For those who hear the page: one sentence, once the hand rests
let resting;

function say(page, {pos, neg, increases}, loss) {
  clearTimeout(resting);
  resting = setTimeout(() => {
    const means = increases ? `It means a probability of ${short(loss.posterior(logit(chosen.score)))}.` : "";
    page.querySelector(".said").textContent = `At a score of ${short(chosen.score)}: present, loss ${short(pos.loss)}, pull
      ${short(pos.pull)}; absent, loss ${short(neg.loss)}, pull ${short(neg.pull)}. ${means}`;
  }, 400);
}

function show(page) {
  const settings = {};
  for (const name of Object.keys(LOSSES[chosen.loss].settings)) settings[name] = chosen[name];
  const loss = makeLoss(chosen.loss, settings, chosen.pos_weight);
  const z = logit(chosen.score);
  const found = {
    pos: loss.positive(z),
    neg: loss.negative(z),
    start: loss.logitOf(chosen.prior),
    cut: loss.logitOf(chosen.cost / (1 + chosen.cost)),
    even: loss.logitOf(.5),
    increases: loss.increases(),
  };
  fill(page);
  page.querySelector(".pictures").innerHTML = pictures(loss, found);
  page.querySelector(".readings").innerHTML = readings(loss, found);
  page.querySelector(".python").textContent = python(found);
  say(page, found, loss);
}

function changed(page) {
  history.replaceState(null, "", address());
  show(page);
}

// Controls are made anew where another loss has others
function build(page) {
  page.querySelector(".controls").innerHTML = controls();
}

// A touch of a picture chooses the score that is there
function chooseScore(page, event) {
  const svg = event.target.closest("[data-picture]");
  if (!svg || (event.type === "pointermove" && !event.buttons)) return;
  const box = svg.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width * WIDTH;
  const share = Math.min(1, Math.max(0, (x - FRAME.left) / (FRAME.right - FRAME.left)));
  const score = chosen.axis === "logit" ? sigmoid(MOST_LOGIT * (2 * share - 1)) : share;
  const {min, max} = SETTINGS.score;
  chosen.score = Math.min(max, Math.max(min, Number(score.toPrecision(3))));
  changed(page);
}

function listen(page) {
  page.addEventListener("input", event => {
    const {slide, number} = event.target.dataset;
    if (event.target.id === "choose-loss") {
      const {pos_weight, prior, cost, score, axis} = chosen;
      chosen = {...defaults(event.target.value), pos_weight, prior, cost, score, axis};
      build(page);
      page.querySelector("#choose-loss").focus();
    } else if (event.target.name === "axis") chosen.axis = event.target.value;
    else if ("option" in event.target.dataset) chosen[OPTION] = event.target.checked;
    else if (slide) chosen[slide] = valueAt(slide, Number(event.target.value));
    else if (number && inRange(number, event.target.value)) chosen[number] = Number(event.target.value);
    changed(page);
  });
  page.addEventListener("focusout", () => fill(page));
  page.addEventListener("click", event => {
    if (!("reset" in event.target.dataset)) return;
    chosen = defaults(chosen.loss);
    changed(page);
  });
  for (const kind of ["pointerdown", "pointermove"])
    page.querySelector(".pictures").addEventListener(kind, event => chooseScore(page, event));
  addEventListener("hashchange", () => { chosen = readAddress(location.hash); build(page); show(page); });
}

addEventListener("DOMContentLoaded", () => {
  const page = document.getElementById("explore");
  page.innerHTML = `<div class="controls"></div>
    <p class="legend"><span class="mark positive">●</span> the label is present
      <span class="mark negative">■</span> it is absent <span class="mark">┄</span> cross-entropy</p>
    <div class="pictures"></div><div class="readings"></div><output class="said"></output>
    <p>The same in Python:</p><div class="highlight"><pre class="python"></pre></div>`;
  chosen = readAddress(location.hash);
  listen(page);
  build(page);
  show(page);
});
