import assert from 'node:assert/strict';
import { test } from 'node:test';
import { scored } from '../client/scored.ts';

const question = (said?: string): { answer: string; said: string | undefined } => ({ answer: 'b', said });

test('a quiz says how many were answered, and how many rightly', () => {
  assert.equal(scored([question(), question()]), '2 questions');
  assert.equal(scored([question('b'), question()]), '1 of 2 answered, 1 right');
  assert.equal(scored([question('a'), question('b')]), 'All 2 answered, 1 right');
});
