for (const strip of document.querySelectorAll(".strip")) {
  const slider = strip.querySelector("input");
  const pictures = [...strip.querySelectorAll("img")];
  slider?.addEventListener("input", () => {
    pictures.forEach((picture, place) => { picture.hidden = place !== Number(slider.value); });
    strip.querySelector("output").textContent = ` at step ${pictures[slider.value].dataset.step}`;
  });
}
