/* A slider under a number: each follows the other. A number beyond the slider's end moves that end. */
lyco.parts.range = ({element, props, watch}) => {
  const range = element.querySelector("input"), {of, low} = range.dataset, end = +range.max, step = +range.step;
  const draw = () => {
    range.max = Math.max(end, Math.ceil((props.value || 0) / step) * step);
    range.value = props.value || 0;
  };
  range.addEventListener("input", () => {
    const number = document.getElementById(of).querySelector("input");
    number.value = Math.max(low, range.value);
    number.dispatchEvent(new Event("input", {bubbles: true}));
  });
  watch("value", draw);
  draw();
};
