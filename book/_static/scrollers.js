/* What scrolls sideways in its own box can be reached, and so scrolled, with the keyboard. */
window.addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  const boxes = document.querySelectorAll(
    ".bd-article table.table, .bd-article mjx-container[display='true'], .bd-article pre"
  );
  for (const box of boxes) if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
});
