// Line charts, drawn by uPlot in the colours of the page.
/* global uPlot */

const COLOURS = ['--line-1', '--line-2', '--line-3', '--line-4', '--line-5', '--line-6', '--line-7', '--line-8'];
/** Lines of one chart; with more nobody tells them apart. */
const MOST_LINES = 8;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const clock = (options) => new Intl.DateTimeFormat('en-GB', { hour12: false, ...options });
const DAY = clock({ month: 'short', day: '2-digit' });
const MINUTE = clock({ hour: '2-digit', minute: '2-digit' });
const SECOND = clock({ hour: '2-digit', minute: '2-digit', second: '2-digit' });
const TENTH = clock({ minute: '2-digit', second: '2-digit', fractionalSecondDigits: 1 });

/** Times on the axis, as fine as what is shown is long. */
function times(_, moments) {
  const long = moments.at(-1) - moments[0];
  const form = long > 3 * 86400 ? DAY : long > 3 * 3600 ? MINUTE : long > 5 ? SECOND : TENTH;
  return moments.map((moment) => form.format(moment * 1000));
}

const tick = new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 3 });

/** A chart in a box: made anew when the theme or its lines change, resized with the box. */
class Chart {
  constructor(box, height) {
    this.box = box;
    this.height = height;
    this.plot = null;
    new ResizeObserver(() => this.plot?.setSize({ width: this.width(), height })).observe(box);
  }

  width() {
    return Math.max(200, this.box.clientWidth);
  }

  draw(names, data, legend) {
    this.drawn = [names, data, legend];
    const key = JSON.stringify([names, document.documentElement.dataset.theme, colour('--ink')]);
    if (this.plot && this.key === key) {
      this.plot.setData(data);
      return;
    }
    this.key = key;
    this.plot?.destroy();
    const axis = { stroke: () => colour('--muted'), grid: { stroke: colour('--line'), width: 1 }, ticks: { stroke: colour('--line'), width: 1 }, font: '12px system-ui, sans-serif' };
    const lines = names.map((name, index) => {
      const line = colour(COLOURS[index % COLOURS.length]);
      return { label: name, stroke: line, width: 2, fill: names.length === 1 ? `${line}22` : undefined, points: { show: data[0].length < 60 && legend }, spanGaps: false };
    });
    this.plot = new uPlot({
      width: this.width(),
      height: this.height,
      legend: { show: legend },
      cursor: { y: false, points: { size: 6 } },
      scales: { y: { range: (_, low, high) => (legend ? uPlot.rangeNum(low ?? 0, high ?? 1, 0.1, true) : [0, Math.max(1, (high ?? 0) * 1.15)]) } },
      axes: [{ ...axis, values: times, space: 80 }, { ...axis, size: 56, values: (_, values) => values.map((value) => tick.format(value)) }],
      series: [{}, ...lines],
    }, data, this.box);
  }

  clear() {
    this.drawn = null;
    this.plot?.destroy();
    this.plot = null;
  }

  /** In the colours of now. */
  again() {
    if (this.drawn) this.draw(...this.drawn);
  }
}

/** The last five minutes of a rate, in seconds from the left. */
export class RateChart {
  constructor(box, unit) {
    this.chart = new Chart(box, 150);
    this.box = box;
    this.unit = unit;
  }

  show(points) {
    this.chart.draw([this.unit], [points.map((p) => p[0] / 1000), points.map((p) => p[1])], false);
    const last = points.at(-1)?.[1];
    this.box.setAttribute('aria-label', `${this.unit}: ${last == null ? 'unknown' : Math.round(last)} now, at most ${Math.round(Math.max(0, ...points.map((p) => p[1] ?? 0)))} in the last minutes`);
  }
}

const TIME = /^\d{4}-\d\d-\d\dT/;

/** Rows with a time and numbers as lines, one per number and combination of texts; says what it left out. */
export class AnswerChart {
  constructor(box) {
    this.chart = new Chart(box, 240);
    this.box = box;
  }

  /** In the colours of now. */
  again() {
    this.chart.again();
  }

  show(columns, rows) {
    const all = (column, fits) => rows.some((row) => row[column] != null) && rows.every((row) => row[column] == null || fits(row[column]));
    const time = columns.find((column) => all(column, (value) => typeof value === 'string' && TIME.test(value)));
    const numbers = columns.filter((column) => all(column, (value) => typeof value === 'number'));
    const texts = columns.filter((column) => column !== time && all(column, (value) => typeof value === 'string'));
    this.box.hidden = rows.length < 2 || !time || numbers.length === 0;
    if (this.box.hidden) {
      this.chart.clear();
      return '';
    }
    const lines = new Map();
    for (const row of rows) {
      // JavaScript reads milliseconds; that is finer than a pixel.
      const at = Date.parse(/Z|[+-]\d\d:?\d\d$/.test(row[time]) ? row[time] : `${row[time]}Z`) / 1000;
      const of = texts.map((column) => row[column]).filter((value) => value != null).join(' ');
      for (const column of numbers) {
        if (row[column] == null || Number.isNaN(at)) continue;
        const name = [of, numbers.length > 1 || !of ? column : ''].filter(Boolean).join(' ');
        if (!lines.has(name)) lines.set(name, new Map());
        lines.get(name).set(at, row[column]);
      }
    }
    const shown = [...lines].slice(0, MOST_LINES);
    const times = [...new Set(shown.flatMap(([, points]) => [...points.keys()]))].sort((a, b) => a - b);
    const data = [times, ...shown.map(([, points]) => times.map((at) => points.get(at)))];
    this.chart.draw(shown.map(([name]) => name), data, true);
    this.box.setAttribute('aria-label', `Chart of ${shown.map(([name]) => name).join(', ')} over ${time}`);
    return lines.size > shown.length ? ` · chart: the first ${shown.length} of ${lines.size} lines` : '';
  }
}
