// The score of a quiz: of its questions, which predict.ts shows and keeps, how many were answered and how many rightly.
import { all, one } from './dom.ts';
import { keep, memory } from './memory.ts';
import { scored } from './scored.ts';

export function score(): void {
  const place = one('.score');
  const asked = all('.ask.quiz');
  if (!place || !asked.length) return;
  one('p', place)!.textContent = scored(asked.map((ask) => ({ answer: ask.dataset.answer ?? '', said: memory.said[ask.id] })));
  const button = one<HTMLButtonElement>('button', place)!;
  button.disabled = asked.every((ask) => memory.said[ask.id] === undefined);
  place.hidden = false;
}

/** What was said is forgotten, and every question asked again. */
function again(): void {
  for (const ask of all('.ask.quiz')) {
    delete memory.said[ask.id];
    const form = one<HTMLFormElement>('form', ask)!;
    form.reset();
    for (const input of all<HTMLInputElement>('input', form)) {
      input.disabled = false;
      input.parentElement!.classList.remove('mine', 'right');
    }
    const button = one<HTMLButtonElement>('button[type="submit"]', ask)!;
    button.disabled = false;
    button.textContent = 'Answer';
    one('.hint', ask)!.textContent = '';
    one<HTMLDetailsElement>(':scope > details', ask)!.open = false;
  }
  keep();
  score();
  one<HTMLInputElement>('.ask.quiz input')?.focus();
}

export function quiz(): void {
  const button = one<HTMLButtonElement>('.score button');
  if (button) button.onclick = again;
  score();
}
