// A chart of the server is a picture that works without this file; here it says its values under the pointer, and a drag looks closer.
"use strict";
(() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const HEIGHT = 90;
  // where the pointer rests in the chart: one that a refresh draws anew says its values there, too
  let pointer = null;

  const draw = (place) => {
    if (place.querySelector(".uplot") || !window.uPlot) return;
    const values = JSON.parse(place.dataset.chart);
    const marks = JSON.parse(place.dataset.marks);
    const minutes = values.map((_, index) => index - values.length + 1);
    const ago = (_, minute) => (minute === null ? "" : minute === 0 ? "this minute" : `${-minute} min ago`);
    const chart = new window.uPlot({
      width: place.clientWidth, height: HEIGHT,
      scales: { x: { time: false }, y: { range: (_, least, most) => [-0.05 * (most || 1), 1.05 * (most || 1)] } },
      axes: [{ show: false }, { show: false }],
      series: [
        { label: "When", value: ago },
        { label: place.dataset.unit, stroke: colour("--accent"), width: 1.5, points: { show: false }, value: (_, value) => (value === null ? "–" : value.toLocaleString("en")) },
      ],
      hooks: {
        // deploys, as the picture of the server has them: places from 0 to 1
        draw: [(self) => {
          self.ctx.save();
          self.ctx.strokeStyle = colour("--warn");
          self.ctx.lineWidth = 1.5 * devicePixelRatio;
          self.ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
          for (const mark of marks) {
            const x = self.valToPos(minutes[0] + mark * (values.length - 1), "x", true);
            if (x < self.bbox.left || x > self.bbox.left + self.bbox.width) continue;
            self.ctx.beginPath();
            self.ctx.moveTo(x, self.bbox.top);
            self.ctx.lineTo(x, self.bbox.top + self.bbox.height);
            self.ctx.stroke();
          }
          self.ctx.restore();
        }],
        setCursor: [(self) => { pointer = self.cursor.left >= 0 ? { left: self.cursor.left, top: self.cursor.top } : null; }],
        // looked at closer, it is not refreshed away
        setScale: [(self, key) => {
          if (key === "x") place.toggleAttribute("data-busy", self.scales.x.min > minutes[0] || self.scales.x.max < 0);
        }],
      },
    }, [minutes, values], place);
    chart.root.setAttribute("aria-hidden", "true"); // the picture of the server has the words
    place.querySelector("svg").classList.add("visually-hidden");
    if (pointer) chart.setCursor(pointer);
    new ResizeObserver(() => { if (place.isConnected && place.clientWidth) chart.setSize({ width: place.clientWidth, height: HEIGHT }); }).observe(place);
  };
  const drawAll = () => document.querySelectorAll("[data-chart]").forEach(draw);
  document.addEventListener("htmx:afterSwap", drawAll);
  drawAll();
})();
