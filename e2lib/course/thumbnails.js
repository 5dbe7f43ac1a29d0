// A row of small pictures; a click, Enter or Space on one chooses it. The model may be given more pictures later.
function render({ model, el }) {
  const row = document.createElement("div"), style = document.createElement("style");
  style.textContent = `.e2lib-thumbnails { display: flex; flex-wrap: wrap; gap: 6px; padding: 4px; }
    .e2lib-thumbnails button { width: 68px; height: 68px; padding: 0; border: 0; border-radius: 4px; cursor: pointer; }
    .e2lib-thumbnails img { width: 100%; height: 100%; display: block; border-radius: 4px; }
    .e2lib-thumbnails button:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
    .e2lib-thumbnails button[aria-pressed=true] { box-shadow: 0 0 0 3px #d55e00; }`;
  row.className = "e2lib-thumbnails";
  row.setAttribute("role", "group");
  row.setAttribute("aria-label", "Pictures to choose from");
  el.append(style, row);
  let urls = [];

  function mark() {
    [...row.children].forEach((button, i) => button.setAttribute("aria-pressed", i === model.get("chosen")));
  }

  function show() {
    urls.forEach((url) => URL.revokeObjectURL(url));
    urls = model.get("pictures").map((file) => URL.createObjectURL(new Blob([file], { type: "image/jpeg" })));
    row.replaceChildren(...urls.map((url, number) => {
      const button = document.createElement("button"), picture = document.createElement("img");
      const label = model.get("labels")[number] ?? "picture";
      [picture.src, picture.alt, button.title] = [url, `${number + 1}: ${label}`, label];
      button.append(picture);
      button.addEventListener("click", () => {
        model.set("chosen", number);
        model.save_changes();
      });
      return button;
    }));
    mark();
  }

  model.on("change:pictures", show);
  model.on("change:chosen", mark);
  show();
  return () => {
    urls.forEach((url) => URL.revokeObjectURL(url));
    model.off("change:pictures", show);
    model.off("change:chosen", mark);
  };
}

export default { render };
