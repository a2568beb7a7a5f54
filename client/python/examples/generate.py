"""A first request from Python: python generate.py [HOST:PORT]"""

import sys

import grpc
from invar.v1 import inference_pb2, inference_pb2_grpc

address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8470"
question = (
    "A recipe for 3 people needs 5 eggs. Ada cooks for 12 people. "
    "How many eggs does Ada need?"
)
request = inference_pb2.GenerateRequest(
    chat={"messages": [{"role": "user", "content": question}]},
    sampling={"temperature": 0},
    stopping={"max_tokens": 128},
)
with grpc.insecure_channel(address) as channel:
    service = inference_pb2_grpc.InferenceServiceStub(channel)
    for event in service.Generate(request, timeout=60):
        print(event.delta.text, end="", flush=True)
    print("\nfingerprint", event.final.completions[0].receipt.fingerprint)
