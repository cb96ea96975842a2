"use strict";
// Strips: all rows of a clip show the same frame. Confusion matrices: the counts of the cell that is pointed at.

const strength = document.getElementById("strength");
const speed = document.getElementById("speed");

class Strip {
  constructor(element) {
    this.element = element;
    this.data = JSON.parse(element.querySelector("script").textContent);
    this.count = this.data.names.length;
    this.figures = [...element.querySelectorAll("figure")];
    this.slider = element.querySelector("input");
    this.output = element.querySelector("output");
    this.playButton = element.querySelector('[data-do="play"]');
    this.decoded = [];
    this.at = 0;
    this.timer = 0; // of the next frame while playing, else 0
    this.listen();
    this.show(0);
  }

  listen() {
    const act = { play: () => this.toggle(), back: () => this.step(-1), forth: () => this.step(1) };
    for (const button of this.element.querySelectorAll("[data-do]")) {
      button.addEventListener("click", act[button.dataset.do]);
    }
    this.slider.addEventListener("input", () => { this.pause(); this.show(Number(this.slider.value)); });
    this.element.addEventListener("keydown", (event) => this.key(event));
    for (const figure of this.figures) {
      const button = figure.querySelector("button");
      button.addEventListener("click", () => {
        button.setAttribute("aria-pressed", String(figure.classList.toggle("large")));
      });
    }
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = {
      ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1), Home: () => this.step(-this.at),
      End: () => this.step(this.count - 1 - this.at), " ": () => this.toggle(),
    };
    // a button that has the focus takes the space bar itself
    if (!(event.key in keys) || (event.key === " " && event.target.tagName === "BUTTON")) return;
    event.preventDefault();
    keys[event.key]();
  }

  // The pictures of a frame, one per row, decoded when first asked for: a page may hold a thousand.
  pictures(frame) {
    this.decoded[frame] ??= Promise.all(this.data.rows.map(async (row) => {
      if (row.pictures[frame] === null) return null;
      const image = Object.assign(new Image(), { src: row.pictures[frame] });
      await image.decode();
      return image;
    }));
    return this.decoded[frame];
  }

  step(by) {
    this.pause();
    this.show((this.at + by + this.count) % this.count);
  }

  async show(frame) {
    this.at = frame;
    const name = this.data.names[frame];
    this.slider.value = frame;
    this.slider.setAttribute("aria-valuetext", `${name}, ${frame + 1} of ${this.count}`);
    this.output.textContent = `${frame + 1}/${this.count} ${name}`;
    const pictures = await this.pictures(frame);
    if (this.at === frame) this.draw(pictures); // else another frame was asked for meanwhile
  }

  draw(pictures) {
    const [width, height] = this.data.size;
    pictures.forEach((picture, i) => {
      const context = this.figures[i].querySelector("canvas").getContext("2d");
      this.figures[i].classList.toggle("missing", picture === null);
      context.clearRect(0, 0, width, height);
      if (picture === null) return;
      const over = this.data.rows[i].over;
      if (over) context.drawImage(pictures[0], 0, 0, width, height);
      context.globalAlpha = over ? strength.value / 100 : 1;
      context.drawImage(picture, 0, 0, width, height);
      context.globalAlpha = 1;
    });
    this.element.dataset.shown = this.at;
  }

  toggle() {
    if (this.timer) { this.pause(); return; }
    this.mark(true);
    this.timer = setTimeout(() => this.tick());
  }

  async tick() {
    const timer = this.timer;
    await this.show((this.at + 1) % this.count);
    if (this.timer !== timer) return; // paused meanwhile, and perhaps started anew
    this.timer = setTimeout(() => this.tick(), 1000 / speed.value);
    this.pictures((this.at + 1) % this.count); // in time for the next tick
  }

  pause() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.mark(false);
  }

  mark(playing) {
    this.playButton.textContent = playing ? "❚❚" : "▶";
    this.playButton.setAttribute("aria-label", playing ? "pause" : "play");
  }
}

const strips = [...document.querySelectorAll(".strip")].map((element) => new Strip(element));
strength?.addEventListener("input", () => strips.forEach((strip) => strip.show(strip.at)));
for (const box of document.querySelectorAll("[data-shows]")) {
  box.addEventListener("change", () => {
    for (const figure of document.querySelectorAll("figure[data-row]")) {
      if (figure.dataset.row === box.dataset.shows) figure.hidden = !box.checked;
    }
  });
}

for (const part of document.querySelectorAll(".confusion")) {
  const rows = [...part.querySelectorAll("tbody tr")].map((row) => [...row.querySelectorAll("td[title]")]);
  const readout = part.querySelector("output");
  let current = [0, 0];
  const choose = (i, j) => {
    const cell = rows[i]?.[j];
    if (!cell) return;
    rows[current[0]][current[1]].classList.remove("current");
    cell.classList.add("current");
    current = [i, j];
    readout.textContent = cell.title;
    return cell;
  };
  const point = (event) => {
    const cell = event.target.closest("td[title]");
    if (cell) choose(cell.parentElement.sectionRowIndex, cell.cellIndex - 1);
  };
  part.addEventListener("pointerover", point);
  part.addEventListener("click", point);
  part.querySelector(".wide").addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    choose(current[0] + move[0], current[1] + move[1])?.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
}
