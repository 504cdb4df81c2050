// On paper answers are unfolded (print.css leaves out the code of figures) and folded again after it: a reader who goes
// on reading finds no prediction spoiled. A link into a fold opens it.
import { all } from './dom.ts';

function openAround(): void {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)).split(':')[0] ?? '');
  for (let fold = target?.closest('details'); fold; fold = fold.parentElement?.closest('details')) fold.open = true;
}

export function folds(): void {
  let opened: HTMLDetailsElement[] = [];
  addEventListener('beforeprint', () => {
    const closed = all<HTMLDetailsElement>('article details').filter((fold) => !fold.open);
    for (const fold of closed) fold.open = true;
    opened = [...opened, ...closed]; // some browsers announce a print twice
  });
  addEventListener('afterprint', () => {
    for (const fold of opened) fold.open = false;
    opened = [];
  });
  addEventListener('hashchange', openAround);
  openAround();
}
