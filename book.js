// Links out of the book lead to files beside it, which mdBook takes for chapters of its own.
for (const link of document.querySelectorAll('main a[href^="../"]')) {
  link.href = link.getAttribute("href").replace(/\.html(#|$)/, ".md$1");
}
