"use strict";
// What scrolls can be reached with the keyboard, and is left alone where it does not scroll. All is measured before anything
// is changed, so that the browser lays the page out once
const scrollable = "article pre, article .cell_output, article .table-wrapper, article .formula, article span.math, .sidebar-scroll, .toc-scroll";

function scrolls(part) {
  const wide = part.scrollWidth > part.clientWidth + 1;
  const high = part.scrollHeight > part.clientHeight + 1;
  if (!wide && !high) return false;
  const style = getComputedStyle(part);
  return (wide && /auto|scroll/.test(style.overflowX)) || (high && /auto|scroll/.test(style.overflowY));
}

// A formula in a line that is wider than the line
function tooWide(formula) {
  return formula.getBoundingClientRect().width > formula.closest("p, li, td, dd, section").clientWidth;
}

function reach() {
  const formulas = [...document.querySelectorAll("article span.math")];
  const wide = formulas.map(formula => tooWide(formula.firstElementChild));
  formulas.forEach((formula, i) => formula.classList.toggle("scrolls", wide[i]));
  const parts = [...document.querySelectorAll(scrollable)];
  const reached = parts.map(scrolls);
  parts.forEach((part, i) => reached[i] ? part.setAttribute("tabindex", "0") : part.removeAttribute("tabindex"));
}

// One button opens all code that is folded
function button() {
  const folded = [...document.querySelectorAll("article details.hide")];
  const title = document.querySelector("article h1");
  if (folded.length < 2 || !title) return;
  const made = document.createElement("button");
  const say = () => { made.textContent = folded.every(o => o.open) ? "Hide folded code" : "Show all code"; };
  made.type = "button";
  made.className = "all-code";
  made.addEventListener("click", () => {
    const open = !folded.every(o => o.open);
    for (const part of folded) part.open = open;
    localStorage.setItem("asl-code", open ? "open" : "");     // pages that are read next begin so
    say();
  });
  if (localStorage.getItem("asl-code")) for (const part of folded) part.open = true;
  for (const part of folded) part.addEventListener("toggle", () => { say(); reach(); });
  say();
  title.after(made);
}

// What is copied from an equation is its TeX, as it stands in the notebook
function copyTeX(event) {
  const selection = getSelection();
  if (selection.isCollapsed) return;
  const copied = selection.getRangeAt(0).cloneContents();
  const formulas = copied.querySelectorAll("math");
  if (!formulas.length) return;
  for (const formula of formulas) {
    const dollars = formula.getAttribute("display") === "block" ? "$$" : "$";
    const tex = formula.querySelector("annotation")?.textContent;
    if (tex) formula.replaceWith(dollars + tex + dollars);
  }
  // A page of its own lays out lines and paragraphs as the reader sees them
  const sheet = document.createElement("div");
  sheet.className = "copied";
  sheet.append(copied);
  document.body.append(sheet);
  event.clipboardData.setData("text/plain", sheet.innerText);
  event.clipboardData.setData("text/html", sheet.innerHTML);
  sheet.remove();
  event.preventDefault();
}

addEventListener("copy", copyTeX);
addEventListener("DOMContentLoaded", () => {
  button();
  addEventListener("resize", reach);
  addEventListener("load", reach);
  document.querySelector(".sidebar-tree .inside")?.addEventListener("toggle", reach);
});
