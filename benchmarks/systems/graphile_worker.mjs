// A graphile-worker process: `node graphile_worker.mjs migrate|worker`. The database comes from PGHOST and its kin,
// the packages from BENCH_NODE_HOME. The handler does nothing, or notes its delay in BENCH_LATENCY_FILE.
import { openSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
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
  const preset = {
    worker: {
      concurrentJobs: 24,
      localQueue: { size: 500 },
      completeJobBatchDelay: 0,
      failJobBatchDelay: 0,
    },
  };
  const runner = await run({ pgPool, preset, logger: quiet, taskList: { bench: handler() } });
  console.log("ready");
  await runner.promise;
}
