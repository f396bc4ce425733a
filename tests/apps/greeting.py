"""A server-first protocol: it speaks when somebody connects, then answers each line with its number."""

import socketserver


class Greeting(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"hello\n")
        for number, line in enumerate(self.rfile, 1):
            self.wfile.write(b"%d %s" % (number, line))


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


Server(("0.0.0.0", 8080), Greeting).serve_forever()
