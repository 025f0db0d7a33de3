/* The theme names a table of contents that it does not have (.bd-toc-nav). Bootstrap then watches
   every link of the page, and stops at an address such as https://a.example/#2-numbers. */
document.addEventListener("DOMContentLoaded", () => {
  if (document.querySelector("#pst-page-toc-nav")) document.body.dataset.bsTarget = "#pst-page-toc-nav";
  else delete document.body.dataset.bsSpy;
});

/* What scrolls sideways in its own box can be reached, and so scrolled, with the keyboard; also
   what is unfolded later. */
window.addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries)
      if (target.scrollWidth > target.clientWidth + 1) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
  });
  document
    .querySelectorAll(".bd-article table.table, .bd-article mjx-container[display='true'], .bd-article pre")
    .forEach((box) => observer.observe(box));
});
