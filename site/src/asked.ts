// The three postures that ask something of the reader: predict, refute, exercise.
import { attributes, escape } from './html.ts';
import { asserts, body, isQuiz, type Prediction, readPrediction, titleOf } from './postures.ts';
import type { Handlers, Renderer } from './renderer.ts';
import { line, type Node, text } from './tree.ts';

const LETTERS = 'abcdefghij';

const PREDICTION = {
  legend: 'Your prediction',
  button: 'Commit my prediction',
  hint: 'The run stays folded until you commit. Nothing leaves this page.',
  fold: 'The run',
};
const QUIZ = {
  legend: 'Your answer',
  button: 'Answer',
  hint: 'Why stays folded until you answer. Kept in this browser only.',
  fold: 'Why',
};

function optionHtml(option: Node, i: number, asked: Prediction, name: string, r: Renderer): string {
  const words = r.all((option.children ?? []).flatMap((c) => (c.type === 'paragraph' ? (c.children ?? []) : [c])));
  const right = i === asked.right - 1;
  const place = asked.at[i] === undefined ? '' : `<i style="--v:${asked.at[i]}%"></i>`;
  return `<label${attributes({ 'data-value': right && asked.measured ? asked.measured : undefined })}><input type="radio" name="${name}" value="${LETTERS[i]}"><span>${words}</span>${place}</label>`;
}

function ask(node: Node, r: Renderer): string {
  const title = titleOf(node);
  const id = node.html_id ?? '';
  const at = { file: r.page.file, line: line(node) };
  if (!id)
    r.problem({
      ...at,
      what: 'a prediction has no label, so it cannot be remembered',
      remedy: 'add a line ":label: ask-…" below its first line',
    });
  let asked: Prediction;
  try {
    asked = readPrediction(node);
  } catch (error) {
    r.problem({ ...at, what: `the prediction "${id}": ${(error as Error).message}`, remedy: 'write it as site/README.md shows' });
    return '';
  }
  const [first, ...more] = asked.question;
  const ends =
    asked.from || asked.to
      ? `<div class="ends" aria-hidden="true"><span>${escape(asked.from)}</span><span>${escape(asked.to)}</span></div>`
      : '';
  const words = isQuiz(node) ? QUIZ : PREDICTION;
  const options = asked.options.map((o, i) => optionHtml(o, i, asked, id, r)).join('');
  return `<section class="ask${isQuiz(node) ? ' quiz' : ''}"${attributes({ id })} data-answer="${LETTERS[asked.right - 1]}">
<h3 class="label">${title ? r.all(title.children) : 'Predict, then run'}</h3>
<div class="q">${first ? `<p>${r.all(first.children)}</p>` : ''}</div>${r.all(more)}
<form><fieldset class="options${asked.at.length ? ' placed' : ''}"><legend class="vh">${words.legend}</legend>${ends}${options}</fieldset>
<div class="commit"><button type="submit">${words.button}</button><p class="hint" aria-live="polite">${words.hint}</p></div></form>
<details><summary>${words.fold}</summary>${r.all(node.fold)}</details>
</section>`;
}

function seen(node: Node, r: Renderer): string {
  const title = titleOf(node);
  const [claim, ...more] = body(node);
  return `<section class="seen"${attributes({ id: node.html_id })}><h3 class="label">${title ? r.all(title.children) : 'You may have seen'}</h3>
<p class="claim">${r.all(claim?.children)}</p>${r.all(more)}${r.all(node.fold)}</section>`;
}

function exercise(node: Node, r: Renderer): string {
  const title = titleOf(node);
  const fold = node.fold ?? [];
  const name = `Exercise ${escape(node.enumerator ?? '')}`.trim();
  const ran = fold.some((n) => n.type === 'cell')
    ? ` <small>ran in this build${asserts(fold) ? ', assertion included' : ''}</small>`
    : '';
  const solution = fold.length ? `<details><summary>Solution${ran}</summary>${r.all(fold)}</details>` : '';
  if (!fold.length)
    r.problem({
      file: r.page.file,
      line: line(node),
      what: `${name} has no solution`,
      remedy: 'let a cell tagged hide-cell, or a dropdown, follow it directly',
    });
  return `<section class="exercise"${attributes({ id: node.html_id })}><h3 class="label">${name}${title ? `: ${escape(text(title))}` : ''}</h3>${r.all(body(node))}${solution}</section>`;
}

/** Filled by client/quiz.ts: how many of the page's questions were answered, and the way to begin anew. */
const score = (): string =>
  '<div class="score" hidden><p role="status"></p><button type="button" class="quiet">Begin anew</button></div>';

export const asked: Handlers = { ask, seen, exercise, score };
