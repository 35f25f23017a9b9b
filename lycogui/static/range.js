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
  /* The number may be switched off, and may come after us; Gradio makes it anew then. */
  const follow = () => {
    const off = !!document.getElementById(of)?.querySelector("input")?.disabled;
    if (range.disabled !== off) range.disabled = off;  // setting it would be seen as a change, for ever
  };
  new MutationObserver(follow).observe(element.closest(".pane") || document.body, {subtree: true, childList: true, attributes: true, attributeFilter: ["disabled"]});
  watch("value", draw);
  draw();
  follow();
};
