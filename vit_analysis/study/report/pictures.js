// Pictures open large in a dialog: by click or key; Escape, a click beside it or its button closes it, arrows leaf through.
{
  const dialog = document.querySelector(".large"), frame = dialog.querySelector(".frame");
  const openers = [...document.querySelectorAll(".enlarge")];
  let shown = 0;

  function open(number) {
    shown = (number + openers.length) % openers.length;
    const small = openers[shown].querySelector("img"), large = new Image();
    Object.assign(large, {src: small.src, alt: small.alt});
    large.addEventListener("click", () => large.classList.toggle("whole"));
    frame.replaceChildren(large);
    dialog.querySelector(".title").textContent = small.title;
    dialog.setAttribute("aria-label", small.title);
    if (!dialog.open) dialog.showModal();
  }

  openers.forEach((opener, number) => opener.addEventListener("click", () => open(number)));
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { frame.replaceChildren(); openers[shown].focus(); });
  dialog.addEventListener("keydown", event => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (step) { event.preventDefault(); open(shown + step); }
  });
}

// Heat maps stand in the place of their pictures, which stay at hand.
document.querySelectorAll("details.still").forEach(still => { still.open = false; });
