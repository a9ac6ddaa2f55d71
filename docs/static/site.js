"use strict";
// What scrolls can be reached with the keyboard, and is left alone where it does not scroll
const scrollable = "article pre, article .cell_output, article .table-wrapper, article mjx-container, .sidebar-scroll, .toc-scroll";

function reach() {
  for (const part of document.querySelectorAll(scrollable)) {
    const style = getComputedStyle(part);
    const scrolls = (part.scrollWidth > part.clientWidth + 1 && /auto|scroll/.test(style.overflowX))
      || (part.scrollHeight > part.clientHeight + 1 && /auto|scroll/.test(style.overflowY));
    if (scrolls) part.setAttribute("tabindex", "0");
    else if (part.localName !== "mjx-container") part.removeAttribute("tabindex");
  }
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

addEventListener("DOMContentLoaded", () => {
  button();
  reach();
  addEventListener("resize", reach);
  addEventListener("load", () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(reach));
  document.querySelector(".sidebar-tree .inside")?.addEventListener("toggle", reach);
});
