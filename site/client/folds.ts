// On paper answers are unfolded (print.css leaves out the code of figures); a link into a fold opens it.
import { all } from './dom.ts';

function openAround(): void {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)).split(':')[0] ?? '');
  for (let fold = target?.closest('details'); fold; fold = fold.parentElement?.closest('details')) fold.open = true;
}

export function folds(): void {
  addEventListener('beforeprint', () => {
    for (const fold of all<HTMLDetailsElement>('article details')) fold.open = true;
  });
  addEventListener('hashchange', openAround);
  openAround();
}
