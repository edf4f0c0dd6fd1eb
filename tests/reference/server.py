"""The litespend under test."""

import http.client
import json
import urllib.parse


class Server:
    """Sends requests over a connection that stays open."""

    def __init__(self, address):
        self.connection = http.client.HTTPConnection(address, timeout=60)

    def ask(self, method, path, query, headers, body=None):
        if query:
            path += "?" + urllib.parse.urlencode(query)
        if body is not None:
            body = json.dumps(body)
            headers = {**headers, "Content-Type": "application/json"}
        status, headers, text = self.send(method, path, body, headers)
        try:
            return status, headers, json.loads(text)
        except ValueError:
            return status, headers, text.decode()

    def send(self, method, path, body, headers):
        try:
            return self.send_once(method, path, body, headers)
        except (http.client.RemoteDisconnected, ConnectionError):
            # The server closes a connection that was idle for long.
            self.connection.close()
            return self.send_once(method, path, body, headers)

    def send_once(self, method, path, body, headers):
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        return answer.status, answer.headers, answer.read()
