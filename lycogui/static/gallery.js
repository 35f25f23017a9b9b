/* The dataset: thumbnails on the left, the chosen picture and its caption on the right. */
lyco.dataset = {items: [], shown: [], chosen: -1, name: "", version: "", filter: "", only: "", listeners: [], drafts: new Map(), saves: 0};
/* Words that were typed and are not on disk yet, by picture: {text, before, trouble, conflict}. Only a save takes one away. */
lyco.dataset.key = item => `${item.folder}\n${item.name}`;
lyco.dataset.draft = item => lyco.dataset.drafts.get(lyco.dataset.key(item));
lyco.dataset.changed = () => lyco.dataset.listeners.forEach(listener => listener());
lyco.dataset.load = async () => {
  const data = lyco.dataset, saves = data.saves;
  let found;
  try { found = await lyco.api("gallery", {version: data.problem ? "" : data.version}); }
  catch (error) {
    if (error.offline) throw error;
    Object.assign(data, {items: [], problem: error.message, version: "", problems: {}, chosen: -1});
    return data.changed();
  }
  if (saves !== data.saves) return lyco.dataset.load();  // it was read before the last save
  if (!found.items) return;
  const other = found.folder !== data.folder;
  Object.assign(data, found, {problem: ""});
  if (other) Object.assign(data, {filter: "", only: ""});
  data.pick(Math.max(other ? 0 : data.items.findIndex(item => item.name === data.name), data.items.length ? 0 : -1));
};
lyco.dataset.pick = index => { const data = lyco.dataset; data.chosen = index; data.name = data.items[index]?.name; data.changed(); };
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
    const parts = [h("b", {}, lyco.some(data.items.length, "picture")), `, ${lyco.count(data.captioned)} with captions. `];
    if (!kinds.length) parts.push("No problems. ");
    for (const [kind, names] of kinds)
      parts.push(h(data.only === kind ? "button.link.on" : "button.link", {title: "Show only these",
        onclick: () => { data.only = data.only === kind ? "" : kind; draw(); }}, `${lyco.count(names.length)} ${kind}`), " ");
    if (data.only || data.filter) parts.push(h("button.link", {onclick: () => { data.only = data.filter = filter.value = ""; draw(); }}, `Show all`), ` ${lyco.count(data.shown.length)} shown.`);
    return parts;
  };
  const flag = item => { const draft = data.draft(item); return draft?.trouble || draft?.conflict !== undefined ? "not saved" : item.flags[0]; };
  const tile = index => {
    const item = data.items[index];
    return h(index === data.chosen ? "figure.on" : "figure", {title: `${item.name}\n${item.caption}`, onclick: () => data.pick(index)},
      item.problem && !item.size ? h("div.broken", {}, item.problem) : h("img", {src: item.thumb, alt: item.caption || item.name, loading: "lazy", draggable: false}),
      flag(item) ? h("span.flag", {}, flag(item)) : null,
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
  let shown = null, saving = Promise.resolve(), timer = 0, latest = "";  // latest: the picture whose caption was saved last

  const say = (item, draft) => {
    const count = draft || item.tokens === null ? "" : `${item.tokens} of ${data.limit} tokens. `;
    const size = item.size ? `${item.size[0]} × ${item.size[1]} px.` : "", saved = latest === data.key(item);
    const choose = (words, wanted) => h("button.link", {onclick: () => { Object.assign(draft, {text: wanted, conflict: undefined}); save(item); draw(); }}, words);
    const conflict = draft && draft.conflict !== undefined, trouble = draft ? draft.trouble : item.problem;
    status.className = `note num ${draft?.trouble ? "bad" : conflict || trouble || item.tokens > data.limit ? "warn" : ""}`;
    fill(status, ...(conflict ? [`Another program has changed this caption to “${draft.conflict}”. `, choose("Save yours", draft.text), " or ", choose("take the other", draft.conflict), "."]
      : draft ? [trouble ? `Not saved: ${trouble}` : "Not saved yet"] : [trouble || count + (saved ? "Saved." : size)]));
  };
  /* Write a picture's draft, whatever is chosen by then; true where it is on disk now. */
  const write = async item => {
    const draft = data.draft(item), {folder, name} = item;
    if (!draft || draft.conflict !== undefined) return false;
    const {text: wanted, before} = draft;
    try {
      const answer = await lyco.api("save_caption", {folder, name, text: wanted, before});
      if (answer.conflict !== undefined) Object.assign(draft, {conflict: answer.conflict, before: answer.conflict});
      else {
        data.saves += 1;
        draft.before = answer.caption;
        draft.trouble = "";
        if (answer.caption !== before) past.push({folder, name, before, after: answer.caption});
        if (draft.text === wanted) data.drafts.delete(data.key(item));
        if (answer.folder !== folder) move(folder, answer.folder);
        if (draft.text === wanted) latest = data.key(item);
        Object.assign(data.items.find(each => data.key(each) === data.key(item)) || {}, answer);
      }
    } catch (error) { draft.trouble = error.message; }
    if (data.drafts.has(data.key(item)) && !(shown && data.key(shown) === data.key(item)))
      lyco.toast(`The caption of ${name} is not saved; your words are kept with the picture.`, "bad");
    data.changed();
    return !draft.trouble && draft.conflict === undefined;
  };
  /* The sample has been copied, and its captions are written there from now on: nothing else changes on screen. */
  const move = (from, to) => {
    for (const each of [...data.items, ...past]) if (each.folder === from) each.folder = to;
    for (const [key, draft] of [...data.drafts]) if (key.startsWith(`${from}\n`)) { data.drafts.delete(key); data.drafts.set(to + key.slice(from.length), draft); }
    data.folder = to;
    const field = document.querySelector("[id='dataset.folder'] :is(input, textarea)");
    field.value = to;
    field.dispatchEvent(new Event("input", {bubbles: true}));
    lyco.toast(`The sample is copied to ${to}; your captions are written there.`);
  };
  const save = item => { clearTimeout(timer); return saving = saving.then(() => item && write(item)); };
  const type = (item, words) => {
    const draft = data.draft(item);
    if (draft) draft.text = words;
    else data.drafts.set(data.key(item), {text: words, before: item.caption, trouble: "", conflict: undefined});
  };
  const go = by => { save(shown); lyco.dataset.walk(by); };
  const draw = () => {
    const item = data.items[data.chosen];
    box.hidden = !item; empty.hidden = !!item;
    undo.disabled = !past.length;
    if (shown && !(item && data.key(shown) === data.key(item))) { save(shown); latest = ""; }
    shown = item;
    if (!item) return;
    const draft = data.draft(item), words = draft ? draft.text : item.caption;
    if (image.src !== new URL(item.large, location).href) image.src = item.large;
    image.alt = item.caption;
    label.textContent = `Caption of ${item.name}` + (item.caption_file.endsWith(".txt") ? "" : `, in ${item.caption_file}`);
    // A line break at the end is not kept on disk, and not taken from under the cursor either.
    if (text.value !== words && !(document.activeElement === text && text.value.trimEnd() === words)) text.value = words;
    say(item, draft);
  };
  data.listeners.push(draw);
  text.addEventListener("input", () => { const item = shown; type(item, text.value); say(item, data.draft(item)); clearTimeout(timer); timer = setTimeout(() => save(item), 700); });
  text.addEventListener("blur", () => save(shown));
  text.addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); go(1); }
  });
  undo.addEventListener("click", async () => {
    await save(shown);
    const last = past.at(-1);
    if (!last) return;
    const index = data.items.findIndex(item => data.key(item) === data.key(last));
    if (index < 0) { past.pop(); return lyco.toast(`${last.name} is not in this folder any more.`); }
    lyco.dataset.pick(index);
    if (data.draft(shown)) return;  // it has words that could not be saved; they come first
    if (shown.caption !== last.after) {
      past.pop();
      draw();
      return lyco.toast(`The caption of ${last.name} has been changed in another way since, so it stays as it is.`);
    }
    type(shown, last.before);
    if (await save(shown)) past.splice(past.indexOf(last));
    draw();
  });
  window.addEventListener("beforeunload", event => { save(shown); if (data.drafts.size) event.preventDefault(); });
  draw();
};
