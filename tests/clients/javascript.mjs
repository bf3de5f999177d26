// Writes points given as JSON on standard input with @influxdata/influxdb-client.
import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'

// Without the line of the library, which is all of it.
process.on('uncaughtException', (error) => {
  console.error(error)
  process.exit(1)
})

const require = createRequire(process.env.CLIENTS_NODE + '/')
const { InfluxDB, Point } = require('@influxdata/influxdb-client')

const { url, token, tls, database, table, points, retries, pause } = JSON.parse(readFileSync(0, 'utf8'))
// As its documentation has it: batches, and its own retries.
const options = { batchSize: 7, flushInterval: 100, maxRetries: retries, minRetryDelay: 200, maxRetryDelay: 1000 }
const api = new InfluxDB({ url, token, transportOptions: tls }).getWriteApi('org', database, 'ns', options)
for (const { time, tags, fields } of points) {
  const point = new Point(table).timestamp(time)
  for (const [name, value] of Object.entries(tags)) point.tag(name, value)
  const { f, i, u, b, s } = fields
  if (f !== undefined) point.floatField('f', f)
  if (i !== undefined) point.intField('i', i)
  if (u !== undefined) point.uintField('u', u)
  if (b !== undefined) point.booleanField('b', b)
  if (s !== undefined) point.stringField('s', s)
  api.writePoint(point)
  await new Promise((resolve) => setTimeout(resolve, pause))
}
await api.close()
