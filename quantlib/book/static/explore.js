// One explorable, two homes. In a notebook a kernel draws each frame; on a page all frames are at hand. Both mount the same markup.
// A setting is a list with the stop of each choice, such as [2, 1, 0].

const PACE = 700; // milliseconds between the steps of Play

/** Change `old` into `fresh`, keeping the elements that stay, so that what moves can move. */
function patch(old, fresh) {
  if (old.nodeName !== fresh.nodeName || old.childNodes.length !== fresh.childNodes.length) return old.replaceWith(fresh);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...(old.attributes ?? [])]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes ?? []) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const [before, after] = [[...old.childNodes], [...fresh.childNodes]];
  before.forEach((child, i) => patch(child, after[i]));
}

/** An element with text. */
function element(tag, text, className = '') {
  const made = Object.assign(document.createElement(tag), { textContent: text });
  if (className) made.className = className;
  return made;
}

/** Bring a widget to life. `ask(at)` is called with each setting that the reader chooses; answer with the view's `show`. */
function mount(root, ask) {
  const find = (selector) => root.querySelector(selector);
  const { choices } = JSON.parse(find('script').textContent);
  const form = find('form');
  const stage = find('.stage');
  const control = (name) => form.elements.namedItem(name);
  const sequence = choices.findIndex(({ kind }) => kind === 'steps');
  const play = find('[data-play]');
  let at = choices.map(({ name }) => Number(control(name).value));
  let playing = false;
  let aloud = false;
  let timer;

  function set(next) {
    at = next;
    choices.forEach(({ name, said }, i) => {
      control(name).value = String(at[i]);
      const output = find(`[data-said="${name}"]`);
      if (output) output.textContent = said[at[i]];
    });
  }

  function choose(next, { announce = true } = {}) {
    if (String(next) === String(at)) return;
    aloud = announce;
    set(next);
    stage.setAttribute('aria-busy', 'true');
    ask(at);
  }

  function show(frame) {
    stage.removeAttribute('aria-busy');
    const fresh = document.createElement('template');
    if (frame.error) fresh.content.append(element('p', frame.error, 'failed'));
    else fresh.innerHTML = frame.picture;
    const [before, after] = [[...stage.childNodes], [...fresh.content.childNodes]];
    if (before.length === after.length) before.forEach((child, i) => patch(child, after[i]));
    else stage.replaceChildren(...after);
    const finding = frame.finding ?? frame.error;
    stage.querySelector('svg')?.setAttribute('aria-label', finding);
    stage.dataset.finding = finding; // for paper, where no control says what was set
    find('.readouts').replaceChildren(...(frame.readouts ?? []).map(([name, value], i) => {
      const pair = document.createElement('div');
      pair.append(element('dt', name), element('dd', value, i ? '' : frame.meaning));
      return pair;
    }));
    find('.remark').textContent = frame.remark ?? '';
    choices.forEach(({ name, said }, i) => {
      const input = control(name);
      if (input.type === 'range') input.setAttribute('aria-valuetext', `${said[at[i]]}; ${finding}`);
      const mark = find(`[data-best="${name}"]`);
      if (!mark) return;
      mark.hidden = !(name in (frame.best ?? {}));
      mark.style.setProperty('--at', mark.hidden ? 0 : frame.best[name] / Math.max(said.length - 1, 1));
    });
    if (aloud) find('.status').textContent = finding;
    if (playing) timer = setTimeout(() => walk(at[sequence] + 1), PACE);
  }

  function stop() {
    playing = false;
    clearTimeout(timer);
    if (play) play.textContent = 'Play';
  }

  function walk(to) {
    const last = choices[sequence].said.length - 1;
    const next = Math.min(Math.max(to, 0), last);
    if (next === last) stop();
    choose(at.map((stop, i) => (i === sequence ? next : stop)), { announce: !playing });
  }

  form.addEventListener('submit', (event) => event.preventDefault());
  form.addEventListener('input', ({ target }) => {
    stop();
    choose(choices.map(({ name }) => Number(control(name).value)), { announce: target.type !== 'range' }); // a slider says its own value
  });
  form.addEventListener('reset', () => {
    stop();
    setTimeout(() => choose(choices.map(({ name }) => Number(control(name).value))));
  });
  form.addEventListener('click', ({ target }) => {
    const playable = target === play && !playing;
    if (target.dataset.step || target === play) stop();
    if (target.dataset.step) walk(at[sequence] + Number(target.dataset.step));
    if (!playable) return;
    playing = true;
    play.textContent = 'Pause';
    walk(at[sequence] === choices[sequence].said.length - 1 ? 0 : at[sequence] + 1);
  });
  return { show, set, choose, choices, at: () => at };
}

/** A page without a kernel: the frames are in the widget's own script, and the setting is kept in the page's address. */
function still(name) {
  const root = document.getElementById(name);
  const { table, frames, readouts, meaning } = JSON.parse(root.querySelector('script').textContent);
  const pieces = (runs) => runs.split(' ').flatMap((run) => {
    const [from, to = from] = run.split('-').map(Number);
    return table.slice(from, to + 1);
  });
  let timer;
  const view = mount(root, (at) => {
    draw(at);
    clearTimeout(timer); // browsers refuse an address that changes with every pixel of a drag
    timer = setTimeout(() => history.replaceState(null, '', `#${name}:${view.choices.map(({ keys }, i) => keys[at[i]]).join()}`), 150);
  });
  function draw(at) {
    const place = view.choices.reduce((sum, { keys }, i) => sum * keys.length + at[i], 0);
    const { p, f, v = [], b, r } = frames[place];
    view.show({ picture: pieces(p).join(''), finding: f, readouts: v.map((value, i) => [readouts[i], value]), meaning, best: b, remark: r });
  }
  function restore() {
    const [id, setting] = location.hash.slice(1).split(':');
    const keys = setting?.split(',') ?? [];
    if (id !== name || keys.length !== view.choices.length) return;
    const at = keys.map((key, i) => view.choices[i].keys.indexOf(key));
    if (at.includes(-1)) return;
    view.set(at);
    draw(at);
    root.scrollIntoView();
  }
  addEventListener('hashchange', restore);
  draw(view.at());
  restore();
}

/** A notebook: the kernel draws the frame of each setting, and sees which one is chosen. */
function render({ model, el }) {
  el.innerHTML = model.get('html').replaceAll('@id@', `explore-${Math.random().toString(36).slice(2, 8)}`);
  const root = el.firstElementChild;
  root.classList.add('live');
  for (const input of root.querySelectorAll('input, select, button')) input.dataset.lmSuppressShortcuts = ''; // arrows move sliders, not cells
  const view = mount(root, (at) => {
    model.set('at', at);
    model.save_changes();
  });
  const move = () => view.set(model.get('at'));
  const arrive = () => {
    const frame = model.get('frame');
    if (String(frame.at) === String(view.at())) view.show(frame); // older ones were overtaken
  };
  model.on('change:at', move);
  model.on('change:frame', arrive);
  move();
  arrive();
  return () => {
    model.off('change:at', move);
    model.off('change:frame', arrive);
  };
}

export default { render };
