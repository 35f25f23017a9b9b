/* What one epoch of the run on screen is, counted from the pictures' headers: on Dataset, and in short beside Train. */
lyco.parts.epoch = ({element}) => {
  const {h, fill} = lyco, root = element.querySelector(".epoch-root"), short = root.classList.contains("short"), MOST = short ? 3 : 8;
  const last = path => path.split(/[\\/]/).filter(Boolean).pop() || path, px = ({width, height}) => `${width} × ${height}`;
  const batches = count => `${lyco.count(count)} ${count === 1 ? "batch" : "batches"}`;
  let shown = "", open = false;

  const folder = ({folder, kind, pictures, repeats: [low, high], shown, weight}) => h("span.piece", {title: folder}, h("b", {}, last(folder)), kind === "validation" ? ` ${lyco.count(pictures)} held out`
    : ` ${lyco.count(pictures)} × ${low === high ? low : `${low} to ${high}`} = ${lyco.count(shown)}${kind === "regularisation" ? ", regularisation" : ""}${weight === 1 ? "" : `, weight ${weight}`}`);
  const bucket = one => h("span.piece", {title: `${lyco.some(one.pictures, "picture")}, shown ${lyco.some(one.shown, "time")} in an epoch`}, `${px(one)}: ${lyco.count(one.shown)} in ${batches(one.batches)}`,
    !one.rest ? null : one.batches > 1 ? `, the last with ${one.rest}` : `, ${one.rest} of ${data.batch_size} places taken`);
  const some = (pieces, what) => pieces.length <= MOST + 1 || open ? pieces : [...pieces.slice(0, MOST), h("button.link", {onclick: () => { open = true; draw(); }}, `and ${lyco.count(pieces.length - MOST)} more ${what}`)];
  const left = ({why, count, names}) => h("span.piece.warn", {title: names.join(", ")}, `${count > 2 ? `${names[0]} and ${lyco.count(count - 1)} more` : names.join(" and ")}: ${why}`);

  let data = null;
  const draw = () => {
    if (!data || data.problem) return fill(root, data && short ? h("p.note.warn", {}, data.problem) : null);
    if (!data.shown) return fill(root);
    const row = (name, ...what) => [h("dt", {}, name), h("dd", {}, ...what)];
    const {batch_size: size, smaller, accumulate, steps_per_epoch: each} = data, n = x => lyco.count(Math.round(100 * x) / 100);
    fill(root, h("dl.epoch.num", {"aria-label": "What an epoch is"},
      row("Folders", ...some(data.folders.map(folder), "folders")),
      row("Buckets", ...some(data.buckets.map(bucket), "buckets")),
      row("An epoch", h("b", {}, `${n(each)} ${each === 1 ? "step" : "steps"}`), `: ${lyco.some(data.shown, "picture")} in ${batches(data.batches)} of ${lyco.count(size)}`,
        smaller ? `, ${lyco.count(smaller)} not full` : "", accumulate > 1 ? `, ${lyco.count(accumulate)} in a step` : ""),
      row("The run", h("b", {}, `${n(data.epochs)} ${data.epochs === 1 ? "epoch" : "epochs"}`), `: ${lyco.some(data.steps, "step")}`),
      short && data.painted.length ? row("Samples", data.every ? `every ${lyco.some(data.every, "step")}: ` : "only when asked for: ", h("span", {title: data.painted.join("\n")}, `“${data.painted[0]}”`, data.painted.length > 1 ? ` and ${lyco.count(data.painted.length - 1)} more` : null)) : [],
      data.left_out.length ? row("Not used", ...some(data.left_out.map(left), "reasons")) : []));
  };
  const look = async () => {
    const found = await lyco.api("epoch"), now = JSON.stringify(found);
    if (now === shown) return;
    shown = now;
    data = found;
    draw();
  };
  const again = lyco.poll(element, 3, look), before = lyco.countEpoch;
  lyco.countEpoch = () => { before?.(); if (element.offsetParent !== null) again(); };
};
