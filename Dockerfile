# syntax=docker/dockerfile:1
# Dependencies are compiled in a layer of their own, which lasts until Cargo.lock changes.
FROM rust:1.95-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1 AS chef
RUN cargo install cargo-chef --version ^0.1 --locked
WORKDIR /build

FROM chef AS planner
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS builder
# A kernel for arm64 may have pages of 64 KiB. jemalloc's default is the page of the machine that builds.
ARG TARGETARCH
COPY --from=planner /build/recipe.json recipe.json
RUN [ "$TARGETARCH" != arm64 ] || export JEMALLOC_SYS_WITH_LG_PAGE=16; \
    cargo chef cook --profile dist --locked --bin litespend --recipe-path recipe.json
COPY . .
RUN [ "$TARGETARCH" != arm64 ] || export JEMALLOC_SYS_WITH_LG_PAGE=16; \
    cargo build --profile dist --locked --bin litespend

# No shell and no package manager; runs as user 65532. It has no PostgreSQL either: set
# DATABASE_URL.
FROM gcr.io/distroless/cc-debian12:nonroot@sha256:9dac0a79194e45a7da0158a9c6da57b217585af0786db3845d1f0ec1a0dd182f
COPY --from=builder /build/target/dist/litespend /usr/local/bin/litespend
ENV HOST=0.0.0.0 PORT=4000
EXPOSE 4000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["/usr/local/bin/litespend", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/litespend"]
CMD ["serve"]
