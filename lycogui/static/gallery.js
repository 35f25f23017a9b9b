/* The dataset: thumbnails on the left, the chosen picture and its caption on the right. */
lyco.dataset = {items: [], shown: [], chosen: -1, version: "", filter: "", only: "", listeners: []};
lyco.dataset.changed = () => lyco.dataset.listeners.forEach(listener => listener());
lyco.dataset.load = async () => {
  const data = lyco.dataset;
  let found;
  try { found = await lyco.api("gallery", {version: data.problem ? "" : data.version}); }
  catch (error) {
    if (error.offline) throw error;
    Object.assign(data, {items: [], problem: error.message, version: "", folder: "", problems: {}, chosen: -1});
    return data.changed();
  }
  if (!found.items) return;
  const name = data.items[data.chosen]?.name;
  const other = found.folder !== data.folder;
  Object.assign(data, found, {problem: ""});
  if (other) Object.assign(data, {filter: "", only: ""});
  data.chosen = Math.max(other ? 0 : data.items.findIndex(item => item.name === name), data.items.length ? 0 : -1);
  data.changed();
};
lyco.dataset.pick = index => { lyco.dataset.chosen = index; lyco.dataset.changed(); };
/* The next or previous picture among those shown. */
lyco.dataset.walk = by => {
  const data = lyco.dataset, at = data.shown.indexOf(data.chosen);
  const next = data.shown[Math.min(data.shown.length - 1, Math.max(0, at + by))];
  if (next !== undefined) data.pick(next);
};

lyco.parts.gallery = ({element}) => {
  const {h, fill} = lyco, data = lyco.dataset, TILE = 124, LABEL = 26;
  const facts = h("p.note.facts"), filter = h("input.filter", {type: "search", placeholder: "Filter: words of a caption or file name",
    "aria-label": "Filter", oninput: () => { data.filter = filter.value; draw(); }});
  const rows = h("div.rows"), scroll = h("div.scroll", {tabIndex: 0, "aria-label": "Pictures"}, rows);
  fill(element.querySelector(".gallery-root"), facts, filter, scroll);
  let columns = 1;

  const matching = () => {
    const words = data.filter.toLowerCase().split(/\s+/).filter(Boolean);
    return data.items.map((item, index) => index).filter(index => {
      const item = data.items[index], text = `${item.name} ${item.caption}`.toLowerCase();
      return (!data.only || item.flags.includes(data.only)) && words.every(word => text.includes(word));
    });
  };
  const sentence = () => {
    if (data.problem) return [h("span.bad", {}, data.problem)];
    if (!data.items.length) return [h("b", {}, "No pictures here yet. "), "Put pictures (png, jpg, webp, bmp) into this folder, or choose another one."];
    const kinds = Object.entries(data.problems || {});
    const parts = [h("b", {}, `${lyco.count(data.items.length)} pictures`), `, ${lyco.count(data.captioned)} with captions. `];
    if (!kinds.length) parts.push("No problems. ");
    for (const [kind, names] of kinds)
      parts.push(h(data.only === kind ? "button.link.on" : "button.link", {title: "Show only these",
        onclick: () => { data.only = data.only === kind ? "" : kind; draw(); }}, `${lyco.count(names.length)} ${kind}`), " ");
    if (data.only || data.filter) parts.push(h("button.link", {onclick: () => { data.only = data.filter = filter.value = ""; draw(); }}, `Show all`), ` ${lyco.count(data.shown.length)} shown.`);
    return parts;
  };
  const tile = index => {
    const item = data.items[index];
    return h(index === data.chosen ? "figure.on" : "figure", {title: `${item.name}\n${item.caption}`, onclick: () => data.pick(index)},
      item.problem && !item.size ? h("div.broken", {}, item.problem) : h("img", {src: item.thumb, alt: item.caption || item.name, loading: "lazy", draggable: false}),
      item.flags.length ? h("span.flag", {}, item.flags[0]) : null,
      h("figcaption", {}, item.caption || item.name));
  };
  /* Only the rows in view exist, so ten thousand pictures cost as much as fifty. */
  const window_ = () => {
    const width = scroll.clientWidth || 600;
    columns = Math.max(2, Math.floor(width / TILE));
    const side = width / columns, height = side + LABEL, count = Math.ceil(data.shown.length / columns);
    rows.style.height = `${count * height}px`;
    const first = Math.max(0, Math.floor(scroll.scrollTop / height) - 2), last = Math.min(count, first + Math.ceil((scroll.clientHeight || 600) / height) + 5);
    const made = [];
    for (let row = first; row < last; row++)
      made.push(h("div.thumbs", {style: {top: `${row * height}px`, gridTemplateColumns: `repeat(${columns}, minmax(0, 1fr))`}},
        ...data.shown.slice(row * columns, (row + 1) * columns).map(tile)));
    fill(rows, ...made);
  };
  const draw = () => {
    data.shown = matching();
    fill(facts, ...sentence());
    filter.hidden = !data.items.length;
    window_();
  };
  data.listeners.push(draw);
  scroll.addEventListener("scroll", window_);
  new ResizeObserver(window_).observe(scroll);
  window.addEventListener("keydown", event => {
    if (lyco.typing() || element.offsetParent === null || document.querySelector(".lightbox")) return;
    const by = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns}[event.key];
    if (by === undefined) return;
    event.preventDefault();
    lyco.dataset.walk(by);
    const row = Math.floor(data.shown.indexOf(data.chosen) / columns), height = scroll.clientWidth / columns + LABEL;
    if (row * height < scroll.scrollTop || (row + 1) * height > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = row * height;
  });
  lyco.poll(element, 2, lyco.dataset.load);
};

lyco.parts.editor = ({element}) => {
  const {h, fill} = lyco, data = lyco.dataset, past = [];
  const image = h("img", {alt: ""}), label = h("label", {htmlFor: "caption-text"}), status = h("p.note.num", {"aria-live": "polite"});
  const text = h("textarea", {id: "caption-text", rows: 3, spellcheck: true, placeholder: "What is in this picture? Use the trigger word for what is new."});
  const undo = h("button.button", {title: "The caption before the last change"}, "Undo");
  const box = h("div.editor", {}, h("div.stage", {}, image), label, text, status,
    h("div.row", {}, h("button.button", {onclick: () => go(-1)}, "Previous"), h("button.button", {onclick: () => go(1), title: "Ctrl+Enter in the caption"}, "Next"), undo));
  const empty = h("div.empty", {}, h("b", {}, "No picture chosen"), "Choose a folder of pictures; click one to write its caption.");
  fill(element.querySelector(".editor-root"), empty, box);
  let shown = null, saving = Promise.resolve(), timer = 0;

  const say = (words, kind = "") => { status.className = `note num ${kind}`; status.textContent = words; };
  const tokens = count => `${count} of ${data.limit} tokens`;
  /* Save what is in the field for the picture it belongs to, whatever is chosen by then. */
  const save = () => {
    clearTimeout(timer);
    const item = shown, wanted = text.value;
    if (!item || wanted === item.caption) return saving;
    const before = item.caption, folder = item.folder;
    item.caption = wanted;
    return saving = saving.then(async () => {
      try {
        const answer = await lyco.api("save_caption", {folder, name: item.name, text: wanted, before});
        if (answer.conflict !== undefined) {
          item.caption = answer.conflict;
          if (shown === item) say(`This caption was changed elsewhere to “${answer.conflict}”. Yours is kept in the field; edit it to save it.`, "warn");
          return;
        }
        past.push({folder, name: item.name, before});
        item.tokens = answer.tokens;
        if (shown === item) say(`${tokens(answer.tokens)}. Saved.`, answer.tokens > data.limit ? "warn" : "");
        lyco.dataset.load();
      } catch (error) {
        item.caption = before;
        if (shown === item) say(`Not saved: ${error.message}`, "bad");
        else lyco.toast(`The caption of ${item.name} was not saved: ${error.message}`, "bad");
      }
    });
  };
  const go = by => { save(); lyco.dataset.walk(by); };
  const draw = () => {
    const item = data.items[data.chosen];
    box.hidden = !item; empty.hidden = !!item;
    undo.disabled = !past.length;
    if (!item) { shown = null; return; }
    const same = shown && shown.name === item.name && shown.folder === item.folder;
    if (shown && !same) save();  // whatever made another picture appear, the words typed are kept
    if (same && document.activeElement === text && text.value !== item.caption) { shown = item; return; }
    shown = item;
    if (image.src !== new URL(item.large, location).href) image.src = item.large;
    image.alt = item.caption;
    label.textContent = `Caption of ${item.name}`;
    if (text.value !== item.caption) text.value = item.caption;
    say(item.problem ? item.problem : `${tokens(item.tokens)}.${item.size ? ` ${item.size[0]} × ${item.size[1]} px.` : ""}`, item.problem || item.tokens > data.limit ? "warn" : "");
  };
  data.listeners.push(draw);
  text.addEventListener("input", () => { say("Not saved yet"); clearTimeout(timer); timer = setTimeout(save, 700); });
  text.addEventListener("blur", save);
  text.addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); go(1); }
  });
  undo.addEventListener("click", async () => {
    await save();
    const last = past.pop();
    if (!last) return;
    const index = data.items.findIndex(item => item.name === last.name && item.folder === last.folder);
    if (index < 0) return lyco.toast(`${last.name} is not in this folder any more.`);
    lyco.dataset.pick(index);
    text.value = last.before;
    await save();
    past.pop();
    draw();
  });
  window.addEventListener("beforeunload", save);
  draw();
};
