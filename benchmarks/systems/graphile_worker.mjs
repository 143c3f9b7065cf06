// A graphile-worker process: `node graphile_worker.mjs migrate|worker`. The database comes from PGHOST and its kin,
// the packages from BENCH_NODE_HOME. The handler does nothing, notes its delay in BENCH_LATENCY_FILE, or awaits
// BENCH_AWAIT_SECONDS. BENCH_AT_ONCE: how many of them may run at once.
import { openSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";

const require = createRequire(join(process.env.BENCH_NODE_HOME, "package.json"));
const load = async (name) => import(pathToFileURL(require.resolve(name)));
const { Logger, run, runMigrations } = await load("graphile-worker");
const pg = (await load("pg")).default;

const quiet = new Logger(() => (level, message) => {
  if (level === "error" || level === "warning") console.error(`${level}: ${message}`);
});

function handler() {
  const path = process.env.BENCH_LATENCY_FILE;
  const milliseconds = 1000 * Number(process.env.BENCH_AWAIT_SECONDS ?? 0);
  if (milliseconds) return async () => sleep(milliseconds);
  if (!path) return async () => {};
  const file = openSync(path, "a");
  return async (message) => {
    // Milliseconds with fractions; good to about a microsecond.
    const late = Math.round((performance.timeOrigin + performance.now()) * 1e6 - message.sent_ns);
    if (message.sent_ns) writeSync(file, `${late}\n`);
  };
}

const pgPool = new pg.Pool({ max: 10 });
if (process.argv[2] === "migrate") {
  await runMigrations({ pgPool, logger: quiet });
  await pgPool.end();
  console.log("migrated");
} else {
  const concurrentJobs = Number(process.env.BENCH_AT_ONCE ?? 24);
  const preset = {
    worker: {
      concurrentJobs,
      localQueue: { size: Math.max(500, concurrentJobs + 1) },
      completeJobBatchDelay: 0,
      failJobBatchDelay: 0,
    },
  };
  const runner = await run({ pgPool, preset, logger: quiet, taskList: { bench: handler() } });
  console.log("ready");
  await runner.promise;
}
