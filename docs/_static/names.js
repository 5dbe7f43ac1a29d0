// The arrows of the side bar hold no text; screen readers want a name.
for (const arrow of document.querySelectorAll("nav summary")) {
  arrow.setAttribute("aria-label", `Pages of ${arrow.closest("li").querySelector("a").textContent}`);
}
// Folds of code are named by what they hold, not "Toggle hidden content".
for (const fold of document.querySelectorAll("details.hide > summary")) fold.removeAttribute("aria-label");
