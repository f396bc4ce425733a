// An http server as anybody writes it: it counts its requests and says what it is and since when.
'use strict'

const { readFile } = require('node:fs/promises')
const { createServer } = require('node:http')

const born = process.hrtime.bigint()
let count = 0

const server = createServer(async (_, answer) => {
  await readFile(__filename) // libuv's file work: what it would give to io_uring
  answer.end(`${++count} ${process.version} ${born}\n`)
})
server.keepAliveTimeout = 60_000 // Node's 5 s run while it is frozen; the test is not about them
server.listen(8080)
process.on('SIGTERM', () => process.exit(0)) // the first process of a container has no other way to heed it
