/* What every part of the page shares: making elements, asking the server, saying things. */
"use strict";
const lyco = window.lyco = {parts: {}};

/* h("button.small", {onclick: f}, "Text", child): an element; strings become text, never markup. */
lyco.h = (what, props = {}, ...children) => {
  const [tag, ...classes] = what.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") Object.assign(element.style, value);
    else if (key === "across") element.style.setProperty("--across", value);
    else if (key in element && key !== "list") element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false));
  return element;
};

lyco.fill = (element, ...children) => element.replaceChildren(...children.flat().filter(Boolean));

lyco.AGAIN = "A training that runs goes on by itself. Start lycogui again as you did before (launch.sh, launch.bat or python app.py): this page then shows it again.";

/* Ask the server; a refusal is an Error with the text for a person. */
lyco.api = async (name, given = {}) => {
  let response;
  try {
    response = await fetch(`/lyco/api/${name}`, {
      method: "POST", headers: {"content-type": "application/json", "x-lycogui": "1"},
      body: JSON.stringify(given)});
  } catch (error) {
    throw Object.assign(new Error(`lycogui does not answer. ${lyco.AGAIN}`), {offline: true});
  }
  const data = await response.json();
  if (!response.ok) throw Object.assign(new Error([data.error.message, data.error.fix].filter(Boolean).join(" ")), data.error);
  return data;
};

/* A short message at the edge of the page. */
lyco.toast = (text, kind = "note") => {
  let stack = document.getElementById("lyco-toasts");
  if (!stack) document.body.append(stack = lyco.h("div", {id: "lyco-toasts", role: "status"}));
  const card = lyco.h(`div.toast.${kind}`, {onclick: () => card.remove()}, text);
  stack.append(card);
  setTimeout(() => card.remove(), kind === "bad" ? 15000 : 6000);
};

/* Call `look` now and every `seconds` while the element can be seen. Returns a function: look at once. */
lyco.poll = (element, seconds, look) => {
  let busy = false, again = false;
  const tick = async () => {
    if (!element.isConnected) { clearInterval(timer); return; }
    if (busy) { again = true; return; }
    busy = true;
    try { await look(); lyco.online(true); }
    catch (error) {
      if (error.offline) lyco.online(false);
      else console.error(error);
    }
    busy = false;
    if (again) { again = false; tick(); }
  };
  const visible = () => document.visibilityState === "visible" && element.offsetParent !== null;
  const timer = setInterval(() => visible() && tick(), seconds * 1000);
  new IntersectionObserver(entries => entries.some(e => e.isIntersecting) && tick()).observe(element);
  tick();
  return tick;
};

/* While nobody answers, what stands on the page is of the last moment that somebody did. */
lyco.online = here => document.querySelectorAll("#header, .monitor-root").forEach(part => part.classList.toggle("cut-off", !here));

/* Until the settings of last time stand in the form, nothing may be typed that they would overwrite. */
lyco.loading = () => {
  document.querySelector(".tabs")?.setAttribute("inert", "");
  setTimeout(lyco.ready, 15000);
};
lyco.ready = () => {
  document.querySelector(".tabs")?.removeAttribute("inert");
  if (!document.body.dataset.ready) lyco.tab(sessionStorage.getItem("lyco-tab"));
  document.body.dataset.ready = "yes";
};
/* A page that is loaded again comes back to the tab it was on. */
addEventListener("pagehide", () => {
  const open = document.querySelector('.tab-container button[role="tab"][aria-selected="true"]');
  if (open) sessionStorage.setItem("lyco-tab", open.textContent.trim());
});

lyco.start = (name, context) => {
  context.element.classList.add("lyco");
  lyco.parts[name](context);
};

/* Go to a tab by its name. */
lyco.tab = name => {
  const button = [...document.querySelectorAll('button[role="tab"]')].find(b => b.textContent.trim() === name);
  if (button) button.click();
};

lyco.css = name => getComputedStyle(document.querySelector(".gradio-container") || document.body).getPropertyValue(name).trim();

lyco.time = seconds => {
  if (seconds === null || seconds === undefined || !isFinite(seconds)) return "unknown";
  const s = Math.max(0, Math.round(seconds)), two = n => String(n).padStart(2, "0");
  return s >= 3600 ? `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}` : `${Math.floor(s / 60)}:${two(s % 60)}`;
};
lyco.count = n => n.toLocaleString("en-US");
lyco.gib = bytes => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
/* Bytes, of a file as of memory: one digit, in the unit of which there are fewer than 1,024. */
lyco.size = bytes => {
  let value = Math.abs(bytes), power = 0;
  while (+value.toFixed(1) >= 1024 && power < 4) { value /= 1024; power++; }
  const digits = power ? 1 : 0, said = value.toLocaleString("en-US", {minimumFractionDigits: digits, maximumFractionDigits: digits});
  return `${bytes < 0 ? "−" : ""}${said} ${["bytes", "KiB", "MiB", "GiB", "TiB"][power]}`;
};
lyco.mib = lyco.memory = lyco.size;
/* Seconds with their units: "5 d 13 h", "2 h 05 min", "3 min 20 s", "12 s". */
lyco.duration = seconds => {
  const s = Math.max(0, Math.round(seconds)), two = n => String(n).padStart(2, "0"), part = (by, of) => Math.floor(s / by) % of;
  if (s >= 86400) return `${Math.floor(s / 86400)} d ${part(3600, 24)} h`;
  if (s >= 3600) return `${part(3600, 24)} h ${two(part(60, 60))} min`;
  return s >= 60 ? `${part(60, 60)} min ${two(s % 60)} s` : `${s} s`;
};

/* Is the user typing? Then keys are theirs. */
lyco.typing = () => ["INPUT", "TEXTAREA", "SELECT"].includes(document.activeElement?.tagName) || document.activeElement?.isContentEditable;

/* A click beside a dialog closes it: one that begins and ends there. Who drags over a text and lets go outside stays. */
lyco.leave = (box, close) => {
  let begun = false, ended = false;
  box.addEventListener("pointerdown", event => { begun = event.target === box; });
  box.addEventListener("pointerup", event => { ended = event.target === box; });
  box.addEventListener("click", event => { if (event.target === box && begun && ended) close(); });
};

/* "1 picture", "2 pictures" */
lyco.some = (n, thing) => `${lyco.count(n)} ${thing}${n === 1 ? "" : "s"}`;

/* A picture large, with what belongs to it; arrows walk through `pictures`. */
lyco.lightbox = (pictures, start) => {
  let place = start;
  const image = lyco.h("img"), text = lyco.h("div.recipe");
  const walk = by => {
    place = (place + by + pictures.length) % pictures.length;
    show();
  };
  const close = () => { box.remove(); document.removeEventListener("keydown", keys, true); };
  const keys = event => {
    const steps = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: pictures[place].down || 1, ArrowUp: -(pictures[place].down || 1)};
    if (event.key === "Escape") close();
    else if (event.key in steps) walk(steps[event.key]);
    else return;
    event.preventDefault(); event.stopPropagation();
  };
  const show = () => {
    const picture = pictures[place];
    image.src = picture.url; image.alt = picture.title;
    lyco.fill(text,
      lyco.h("b", {}, picture.title), ...picture.lines.map(line => lyco.h("span", {}, line)),
      lyco.h("span.grow"),
      lyco.h("button", {onclick: async () => {
        await navigator.clipboard.writeText([picture.title, ...picture.lines].join("\n"));
        lyco.toast("Copied.");
      }}, "Copy"),
      lyco.h("a.button", {href: picture.url, download: picture.file || "picture.png"}, "Save"),
      lyco.h("button", {onclick: close, title: "Escape"}, "Close"));
  };
  const box = lyco.h("div.lightbox", {role: "dialog", "aria-label": "Picture"},
    lyco.h("button.walk", {onclick: () => walk(-1), "aria-label": "Previous"}, "‹"),
    lyco.h("figure", {}, image, text),
    lyco.h("button.walk", {onclick: () => walk(1), "aria-label": "Next"}, "›"));
  lyco.leave(box, close);
  document.addEventListener("keydown", keys, true);
  document.body.append(box);
  show();
};
