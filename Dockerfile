# syntax=docker/dockerfile:1
# The service with ONNX Runtime and the bundled sentiment model.
#
#   docker build -t explaind .
#   docker run --rm -p 8080:8080 --read-only explaind
#
# Settings of your own: flags behind `serve`, variables, or a file mounted at /etc/explaind/explaind.toml.
#
# For a GPU give the ONNX Runtime build with the CUDA provider, and a base that holds CUDA and cuDNN:
#
#   docker build -t explaind:cuda --build-arg DEVICE=cuda --build-arg BASE=<a CUDA runtime image with cuDNN> .
#   docker run --rm -p 8080:8080 --gpus all explaind:cuda serve --device cuda

ARG BASE=gcr.io/distroless/cc-debian12:nonroot

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
COPY tests/it tests/it
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin explaind && cp target/release/explaind /explaind

FROM python:3.11-slim-bookworm AS onnxruntime
ARG DEVICE=cpu
WORKDIR /fetch
COPY scripts scripts
RUN scripts/fetch-onnxruntime --device "$DEVICE" --into /onnxruntime && rm /onnxruntime/version

# hadolint ignore=DL3006
FROM ${BASE}
COPY --from=build /explaind /usr/local/bin/explaind
COPY --from=onnxruntime /onnxruntime/ /usr/local/lib/
COPY models /models
COPY deploy/explaind.toml /etc/explaind/explaind.toml
ENV EXPLAIND_CONFIG=/etc/explaind/explaind.toml
EXPOSE 8080
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/explaind"]
CMD ["serve"]
