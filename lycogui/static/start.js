/* Above the button Train: which adapter the next run goes on from, whose field lies in a closed fold. */
lyco.parts.start = ({element, props, trigger, watch}) => {
  const {h, fill} = lyco, root = element.querySelector(".start-root");
  const draw = () => {
    const from = (props.value || "").trim(), name = from.split(/[\\/]/).filter(Boolean).pop()?.replace(/\.safetensors$/, "");
    element.hidden = !from;
    fill(root, from && h("p.goes-on", {title: from}, "Goes on from ", h("b", {}, name), h("button.link", {onclick: () => trigger("clear"), title: "Begin without an adapter"}, "Start at no change")));
  };
  watch("value", draw);
  draw();
};
