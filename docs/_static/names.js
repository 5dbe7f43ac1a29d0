// The arrows of the side bar hold no text; screen readers want a name.
for (const arrow of document.querySelectorAll("nav summary")) {
  arrow.setAttribute("aria-label", `Pages of ${arrow.closest("li").querySelector("a").textContent}`);
}
