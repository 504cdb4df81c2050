// llama.cpp for another process: a request a line on stdin, an answer a line on stdout, both JSON.
// node llama_cpp.mjs PACKAGE MODEL THREADS CONTEXT, with PACKAGE the folder of node-llama-cpp. Started by llama_cpp.py.
import {createInterface} from "node:readline";
import path from "node:path";
import {pathToFileURL} from "node:url";

const CHUNK = 16;
const [, , packageFolder, modelPath, threads, contextSize] = process.argv;
const answer = (value) => process.stdout.write(JSON.stringify(value) + "\n");

/** Greedy decoding. Each token's time runs from the one before it to its own, so the first holds the whole prompt. */
async function generate(sequence, {tokens, count}) {
    const found = [], seconds = [];
    let last = performance.now();
    // a model that ends its text goes on: whoever compares speeds counts tokens
    for await (const token of sequence.evaluate(tokens, {temperature: 0, yieldEogToken: true})) {
        const now = performance.now();
        found.push(token);
        seconds.push((now - last) / 1000);
        last = now;
        if (found.length === count) break;
    }
    return {tokens: found, seconds};
}

/** Of every position but the last: the likeliest next token, and the log-probability of the one that stands there. */
async function score(sequence, {tokens}) {
    const top = [], logProbabilities = [];
    for (let start = 0; start < tokens.length - 1; start += CHUNK) { // all logits of a chunk are held at once
        const input = tokens.slice(start, Math.min(start + CHUNK, tokens.length - 1));
        const results = await sequence.controlledEvaluate(input.map((token) => [token, {generateNext: {logits: true}}]));
        results.forEach(({next: {logits}}, i) => {
            const [best, highest] = logits.entries().next().value; // sorted, the largest first
            let sum = 0; // in doubles: the package's own totalLogitWeight is summed in floats, 2e-4 too small
            for (const logit of logits.values()) sum += Math.exp(logit - highest);
            top.push(best);
            logProbabilities.push(logits.get(tokens[start + i + 1]) - highest - Math.log(sum));
        });
    }
    return {top, logProbabilities};
}

const tasks = {generate, score};
try {
    const {getLlama} = await import(pathToFileURL(path.join(packageFolder, "dist", "index.js")).href);
    const llama = await getLlama({
        gpu: false, build: "never", skipDownload: true, progressLogs: false, maxThreads: Number(threads),
        logLevel: "error", logger: (level, message) => process.stderr.write(message + "\n"), // stdout is for answers
    });
    const model = await llama.loadModel({modelPath});
    const context = await model.createContext({
        threads: {ideal: Number(threads), min: Number(threads)}, contextSize: Number(contextSize), sequences: 1,
    });
    const sequence = context.getSequence();
    answer({release: llama.llamaCppRelease.release, system: llama.systemInfo, threads: context.idealThreads});

    for await (const line of createInterface({input: process.stdin})) {
        const {task, ...request} = JSON.parse(line);
        try {
            await sequence.clearHistory(); // every request begins anew: nothing of the one before is reused
            answer(await tasks[task](sequence, request));
        } catch (error) {
            answer({error: String(error.message ?? error)});
        }
    }
    process.exit(0); // stdin was closed
} catch (error) {
    answer({error: String(error.message ?? error)});
    process.exit(1);
}
