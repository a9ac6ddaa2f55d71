// Sphinx takes the whole of its Scorer from here. Pages that explain the inside of the package come last
var Scorer = {
  score: ([, title, , , score]) => title.startsWith("Inside: ") ? score - 1000 : score,
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: {0: 15, 1: 5, 2: -5},
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
