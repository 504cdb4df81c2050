// The contents: which parts were read, the mark that snaps to the section in view, and the drawer on a phone.
import { all, one } from './dom.ts';
import { keep, memory } from './memory.ts';

function showRead(): void {
  for (const item of all('li[data-part]')) {
    const read = Boolean(memory.read[item.dataset.part ?? '']);
    item.classList.toggle('read', read);
    const words = one('.was-read', item);
    if (words) words.textContent = !read ? '' : words.matches('small') ? 'read' : ', read';
  }
}

function readBox(): void {
  const box = one<HTMLInputElement>('.done input');
  const page = document.documentElement.dataset.page ?? '';
  if (!box) return;
  box.checked = Boolean(memory.read[page]);
  box.onchange = () => {
    memory.read[page] = box.checked;
    keep();
    showRead();
  };
}

function ruler(): () => void {
  const parts = one('.parts')!;
  const links = all<HTMLAnchorElement>('.parts ol ol a');
  const targets = links.map((link) => document.getElementById(decodeURIComponent(link.hash.slice(1))));
  const atEnd = (): boolean => innerHeight + scrollY >= document.documentElement.scrollHeight - 2 && scrollY > 0;
  return () => {
    const passed = targets.filter((target) => target && target.getBoundingClientRect().top < innerHeight / 3).length;
    const here = links[(atEnd() ? links.length : passed) - 1];
    for (const link of links) link === here ? link.setAttribute('aria-current', 'location') : link.removeAttribute('aria-current');
    const at = here ?? one('.parts [aria-current="page"]');
    const last = all('.parts :is(a, .row)').at(-1);
    if (!at || !last) return;
    const tick = (line: HTMLElement): number => line.offsetTop + parseFloat(getComputedStyle(line, '::before').top);
    parts.style.setProperty('--at', `${tick(at)}px`);
    parts.style.setProperty('--length', `${tick(last) - 12}px`);
  };
}

export function contents(): void {
  showRead();
  readBox();
  const snap = ruler();
  addEventListener('scroll', snap, { passive: true });
  addEventListener('resize', snap);
  void document.fonts.ready.then(snap);
  const menu = one('.menu')!;
  const open = (on: boolean): void => {
    document.body.classList.toggle('open-nav', on);
    menu.setAttribute('aria-expanded', String(on));
    snap();
  };
  menu.onclick = () => open(!document.body.classList.contains('open-nav'));
  for (const link of all<HTMLAnchorElement>('.parts ol ol a')) link.addEventListener('click', () => open(false));
  addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && document.body.classList.contains('open-nav') && !(event.target as Element).closest('.search')) {
      open(false);
      menu.focus();
    }
  });
}
