// Restores links to files outside the book. mdBook takes them for chapters, so it replaces their
// ending .md by .html.
for (const link of document.querySelectorAll('main a[href^="../"]')) {
  link.href = link.getAttribute("href").replace(/\.html(#|$)/, ".md$1");
}
