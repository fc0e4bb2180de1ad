"""A client of IoT Edge and IoT Hub that is not ours, for tests of the stand-in: the official SDK, unchanged.

    oracle.py module TOKEN_SECONDS                  by what edgeAgent sets in the environment
    oracle.py device CONNECTION_STRING CA_FILE      by a connection string
    oracle.py device_x509 HOST DEVICE CERTIFICATE_FILE KEY_FILE CA_FILE
                                                    by a certificate
    oracle.py provision HOST SCOPE REGISTRATION KEY CA_FILE
                                                    registers, then connects to the hub that it was told
    oracle.py provision_group HOST SCOPE REGISTRATION GROUP_KEY CA_FILE
                                                    with the key that follows from that of a group
    oracle.py provision_x509 HOST SCOPE REGISTRATION CERTIFICATE_FILE KEY_FILE CA_FILE
                                                    by a certificate, at the service and at the hub

It connects, sends a message, reads the twin, reports, and says "ready". From then on it says what arrives, each a line of a
word and JSON, and answers calls of methods with 200 and what they carried; the call of "end" is the last.
"""

import base64
import hashlib
import hmac
import json
import sys
import threading
from pathlib import Path

from azure.iot.device import (
    X509,
    IoTHubDeviceClient,
    IoTHubModuleClient,
    Message,
    MethodResponse,
    ProvisioningDeviceClient,
)

BODY = json.dumps({"value": 1.5, "text": "grün & =/+"})
END_SECONDS = 120


def say(word: str, value: object) -> None:
    print(word, json.dumps(value, sort_keys=True), flush=True)


def message() -> Message:
    made = Message(BODY, message_id="m 1", content_encoding="utf-8", content_type="application/json")
    made.custom_properties["machine"] = "press/1 & more"
    return made


def received(incoming: Message) -> None:
    say(
        "message",
        {
            "input": incoming.input_name,
            "body": incoming.data.decode(),
            "properties": incoming.custom_properties,
        },
    )


def serve(client) -> None:
    """Does with a connected client what module and device have in common."""
    ended = threading.Event()

    def call(request) -> None:
        say("method", {"name": request.name, "payload": request.payload})
        client.send_method_response(MethodResponse.create_from_method_request(request, 200, request.payload))
        if request.name == "end":
            ended.set()

    client.on_message_received = received
    client.on_twin_desired_properties_patch_received = lambda patch: say("patch", patch)
    client.on_method_request_received = call
    say("twin", client.get_twin())
    client.patch_twin_reported_properties({"state": "armed", "limits": {"rms": 4.5}})
    client.patch_twin_reported_properties({"limits": {"rms": None, "peak": 9}})
    say("ready", client.connected)
    if not ended.wait(END_SECONDS):
        raise SystemExit("no call of \"end\"")
    client.shutdown()


def module(token_seconds: str) -> None:
    client = IoTHubModuleClient.create_from_edge_environment(sastoken_ttl=int(token_seconds))
    client.connect()
    client.send_message_to_output(message(), "alerts")
    client.send_message("no output")
    serve(client)


def device(connection_string: str, ca_file: str) -> None:
    authority = Path(ca_file).read_text()
    client = IoTHubDeviceClient.create_from_connection_string(
        connection_string, server_verification_cert=authority
    )
    client.connect()
    client.send_message(message())
    serve(client)


def device_x509(host: str, device_id: str, certificate: str, key: str, ca_file: str) -> None:
    client = IoTHubDeviceClient.create_from_x509_certificate(
        x509=X509(certificate, key),
        hostname=host,
        device_id=device_id,
        server_verification_cert=Path(ca_file).read_text(),
    )
    client.connect()
    client.send_message(message())
    serve(client)


def registered(registering: ProvisioningDeviceClient):
    result = registering.register()
    state = result.registration_state
    say("registered", {"status": result.status, "hub": state.assigned_hub, "device": state.device_id})
    return state


def provision(host: str, scope: str, registration: str, key: str, ca_file: str) -> None:
    authority = Path(ca_file).read_text()
    registering = ProvisioningDeviceClient.create_from_symmetric_key(
        provisioning_host=host,
        registration_id=registration,
        id_scope=scope,
        symmetric_key=key,
        server_verification_cert=authority,
    )
    state = registered(registering)
    client = IoTHubDeviceClient.create_from_symmetric_key(
        symmetric_key=key,
        hostname=state.assigned_hub,
        device_id=state.device_id,
        server_verification_cert=authority,
    )
    send_one(client)


def send_one(client: IoTHubDeviceClient) -> None:
    client.connect()
    client.send_message(message())
    client.shutdown()


def provision_group(host: str, scope: str, registration: str, group_key: str, ca_file: str) -> None:
    code = hmac.new(base64.b64decode(group_key), registration.encode(), hashlib.sha256).digest()
    provision(host, scope, registration, base64.b64encode(code).decode(), ca_file)


def provision_x509(
    host: str, scope: str, registration: str, certificate: str, key: str, ca_file: str
) -> None:
    authority = Path(ca_file).read_text()
    shown = X509(certificate, key)
    registering = ProvisioningDeviceClient.create_from_x509_certificate(
        provisioning_host=host,
        registration_id=registration,
        id_scope=scope,
        x509=shown,
        server_verification_cert=authority,
    )
    state = registered(registering)
    client = IoTHubDeviceClient.create_from_x509_certificate(
        x509=shown,
        hostname=state.assigned_hub,
        device_id=state.device_id,
        server_verification_cert=authority,
    )
    send_one(client)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
