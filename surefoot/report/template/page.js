"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star"];
  const chosen = {};

  function lines(figure, choice) {
    const traces = [];
    choice.lines.forEach((line, i) => {
      const colour = COLOURS[i % COLOURS.length];
      if (line.low && line.high) {
        traces.push({
          x: line.x.concat([...line.x].reverse()), y: line.high.concat([...line.low].reverse()), type: "scatter", mode: "lines",
          fill: "toself", fillcolor: colour + "22", line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: line.name,
        });
      }
      traces.push({
        x: line.x, y: line.y, name: line.name, legendgroup: line.name, type: "scatter", mode: "lines+markers",
        line: { color: colour, dash: DASHES[i % DASHES.length], width: 2 }, marker: { color: colour, symbol: SYMBOLS[i % SYMBOLS.length], size: 7 },
      });
    });
    return [traces, {
      height: 360, margin: { l: 56, r: 12, t: 12, b: 48 },
      xaxis: { title: { text: figure.x }, type: figure.log ? "log" : "linear" },
      yaxis: { title: { text: figure.y }, range: figure.percent ? [-2, 102] : undefined },
      legend: { orientation: "h", y: -0.2 },
    }];
  }

  function surface(figure, choice) {
    return [[{ type: "surface", x: choice.e1, y: choice.e2, z: choice.loss, colorscale: "Viridis" }], {
      height: 480, margin: { l: 0, r: 0, t: 0, b: 0 },
      scene: { xaxis: { title: { text: "e1" } }, yaxis: { title: { text: "e2" } }, zaxis: { title: { text: "loss" } } },
    }];
  }

  function draw(id) {
    const element = document.getElementById(id);
    const figure = figures[id];
    const [traces, layout] = (figure.kind === "surface" ? surface : lines)(figure, figure.choices[chosen[id] || 0]);
    return Plotly.react(element, traces, layout, { responsive: true, displaylogo: false });
  }

  function drawVisible() {
    for (const id of Object.keys(figures)) {
      const element = document.getElementById(id);
      if (element.offsetParent && !element.data) draw(id);
    }
  }

  document.addEventListener("change", (event) => {
    const id = event.target.dataset.figure;
    if (!id) return;
    chosen[id] = Number(event.target.value);
    draw(id);
    const caption = document.getElementById(id + "-caption");
    if (caption) caption.textContent = figures[id].choices[chosen[id]].caption;
  });
  document.addEventListener("toggle", drawVisible, true);
  drawVisible();
})();
