// Brings news into the page: fetches the part that changes, and turns moments into ages. Without it the page still says everything.
"use strict";

const EVERY = 2000;
const news = document.getElementById("news");
const lost = document.getElementById("lost");
const hold = document.getElementById("hold");
let held = false;
let shown = "";

function age(seconds) {
  const steps = [[86400, "d"], [3600, "h"], [60, "min"]];
  for (const [size, unit] of steps) if (seconds >= size) return `${Math.floor(seconds / size)} ${unit} ago`;
  return `${Math.max(0, Math.floor(seconds))} s ago`;
}

function ages() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    if (!time.title) time.title = time.textContent;
    time.textContent = age((Date.now() - Date.parse(time.dateTime)) / 1000);
  }
}

async function look() {
  if (held || document.hidden) return;
  try {
    const answer = await fetch("news", { cache: "no-cache", credentials: "same-origin" });
    if (!answer.ok) throw new Error(String(answer.status));
    const text = await answer.text();
    lost.hidden = true;
    if (text === shown || held) return;
    shown = text;
    const open = new Set(Array.from(news.querySelectorAll("details[open]"), (part) => part.id));
    const where = new Map(Array.from(news.querySelectorAll(".scroll[id]"), (part) => [part.id, part.scrollLeft]));
    const active = news.contains(document.activeElement) ? document.activeElement.id : "";
    news.innerHTML = text; // made by our own server, every name in it escaped, and no script in it may run
    for (const id of open) if (id && document.getElementById(id)) document.getElementById(id).open = true;
    for (const [id, left] of where) if (document.getElementById(id)) document.getElementById(id).scrollLeft = left;
    if (active && document.getElementById(active)) document.getElementById(active).focus();
    const said = news.querySelector("[data-said]");
    const status = document.getElementById("status");
    if (said && status.textContent !== said.dataset.said) status.textContent = said.dataset.said;
    const title = news.querySelector("h1");
    if (title) document.title = `${title.textContent.trim()} – tmca-fl`;
    ages();
  } catch {
    lost.hidden = false;
  }
}

hold.hidden = false;
hold.addEventListener("click", () => {
  held = !held;
  hold.setAttribute("aria-pressed", String(held));
  hold.textContent = held ? "Go on refreshing" : "Hold still";
  if (!held) look();
});
setInterval(() => { ages(); look(); }, EVERY);
ages();
