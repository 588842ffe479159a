// The official Node client against a gateway: `node check.mjs BASE_URL` prints what it saw as one JSON object.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "x", maxRetries: 0 });
const messages = [{ role: "user", content: "What is 2 + 2?" }];
const rerank = { candidates: 4, selector: "reward" };

const models = [];
for await (const model of client.models.list()) models.push(model.id);

const whole = await client.chat.completions.create({ model: "reranked", messages, rerank });

let streamed = "";
let progress = 0;
let streamedRerank = null;
for await (const chunk of await client.chat.completions.create({ model: "reranked", messages, rerank, stream: true })) {
  streamed += chunk.choices[0].delta.content ?? "";
  progress += chunk.rerank_progress ? 1 : 0;
  streamedRerank = chunk.rerank ?? streamedRerank;
}

// The helper that puts a stream together again checks the order and the completeness of what it reads.
const helper = client.chat.completions.stream({ model: "policy", messages });
const final = await helper.finalChatCompletion();
const completion = await client.completions.create({ model: "policy", prompt: "2 + 2 =" });

let refusal = null;
try {
  await client.chat.completions.create({ model: "gpt-4o", messages });
} catch (error) {
  refusal = { name: error.constructor.name, status: error.status, code: error.code, requestID: typeof error.requestID };
}

console.log(JSON.stringify({
  models,
  whole: whole.choices[0].message.content,
  chosen: whole.rerank.chosen_index,
  totalTokens: whole.usage.total_tokens,
  streamed,
  progress,
  streamedChosen: streamedRerank.chosen_index,
  policy: final.choices[0].message.content,
  completion: completion.choices[0].text,
  refusal,
}));
