# Builds both programs and runs them under supervisord, each as an ordinary user of its own: the app cannot read or write the audit log,
# and has no key that signs it.
#
#   docker build -t outrigger .
#   docker run -p 8080:8080 -e DATABASE_URL=… -e CHROMA_URL=… -e APP_API_KEYS=… \
#     -e OUTRIGGER_AUDIT_KEYS=k1:… -e OUTRIGGER_AUDIT_DATABASE_URL=… -v outrigger-audit:/var/lib/outrigger/audit outrigger
#
# Renew the pinned bases together: the programs need the same Debian release to build and to run.

FROM rust:1.95.0-slim-bookworm AS build
# Versions follow the pinned base's release; pinning each would only break on Debian's next point release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential cmake \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Line tables of a whole dependency tree would triple the image; backtraces keep their function names.
ENV CARGO_PROFILE_RELEASE_DEBUG=false

# Dependencies first, with empty sources in place of ours: this layer is built anew only when a manifest changes.
COPY Cargo.toml Cargo.lock ./
COPY policy/Cargo.toml policy/
COPY metrics/Cargo.toml metrics/
COPY tokens/Cargo.toml tokens/
COPY trail/Cargo.toml trail/
COPY traffic/Cargo.toml traffic/
COPY wire/Cargo.toml wire/
COPY identity/Cargo.toml identity/
COPY rules/Cargo.toml rules/
COPY transport/Cargo.toml transport/
COPY mechanism/Cargo.toml mechanism/
COPY backtest/Cargo.toml backtest/
COPY proxy/Cargo.toml proxy/
COPY app/Cargo.toml app/
COPY tests/Cargo.toml tests/
COPY simulation/Cargo.toml simulation/
COPY tests/algorithms/Cargo.toml tests/algorithms/
COPY tests/edge/Cargo.toml tests/edge/
COPY tests/experiment/Cargo.toml tests/experiment/
COPY tests/soak/Cargo.toml tests/soak/
COPY xtask/Cargo.toml xtask/
RUN mkdir policy/src metrics/src tokens/src trail/src traffic/src wire/src identity/src rules/src transport/src mechanism/src backtest/src proxy/src app/src simulation/src tests/algorithms/src tests/edge/src tests/experiment/src tests/soak/src xtask/src \
    && touch policy/src/lib.rs metrics/src/lib.rs tokens/src/lib.rs trail/src/lib.rs traffic/src/lib.rs wire/src/lib.rs identity/src/lib.rs rules/src/lib.rs transport/src/lib.rs mechanism/src/lib.rs backtest/src/lib.rs proxy/src/lib.rs app/src/lib.rs simulation/src/lib.rs xtask/src/lib.rs tests/lib.rs tests/algorithms/src/lib.rs tests/edge/src/lib.rs \
    && for program in proxy/src app/src simulation/src xtask/src tests tests/edge/src tests/experiment/src tests/soak/src; do echo 'fn main() {}' > "$program/main.rs"; done \
    && cargo build --release --locked --package outrigger --package outrigger-app

# The real sources. Their times are older than the layer above, so cargo must be told that they are new.
COPY . .
RUN find policy metrics tokens trail traffic wire identity rules transport mechanism backtest proxy app -name '*.rs' -exec touch {} + \
    && cargo build --release --locked --package outrigger --package outrigger-app


# `docker build --target run`: a smaller image without Python, whose only process is Outrigger, which starts the app (docs/run.md). Both
# are one user here, so the app could read the audit log: it is off.
FROM debian:bookworm-20260824-slim AS run
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/outrigger --shell /usr/sbin/nologin outrigger \
    && install -d -o 10001 -m 0700 /var/lib/outrigger /var/lib/outrigger/state
COPY --from=build /src/target/release/outrigger /src/target/release/outrigger-app /usr/local/bin/
COPY config/proxy.toml /etc/outrigger/proxy.toml
ENV APP_SOCKET=/var/lib/outrigger/app.sock \
    APP_LISTEN=127.0.0.1:8081 \
    OUTRIGGER_CONFIG=/etc/outrigger/proxy.toml \
    OUTRIGGER_LISTEN=0.0.0.0:8080 \
    OUTRIGGER_ADMIN_LISTEN=0.0.0.0:9091 \
    OUTRIGGER_APP_ADDRESS=unix:/var/lib/outrigger/app.sock \
    OUTRIGGER_APP_METRICS=http://127.0.0.1:8081/metrics \
    OUTRIGGER_STATE_DIRECTORY=/var/lib/outrigger/state
USER 10001
WORKDIR /var/lib/outrigger
EXPOSE 8080 9091
CMD ["outrigger", "run", "--", "outrigger-app"]


FROM debian:bookworm-20260824-slim
# supervisor brings Python, which the watchdog needs as well; ca-certificates is for TLS to the databases.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates supervisor \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 10001 outrigger \
    && groupadd --system --gid 10002 outrigger-app \
    && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/outrigger --shell /usr/sbin/nologin outrigger \
    && useradd --system --uid 10002 --gid 10002 --home-dir /nonexistent --shell /usr/sbin/nologin outrigger-app \
    && install -d -m 0755 /var/lib/outrigger \
    && install -d -o 10002 -g 10001 -m 2750 /var/lib/outrigger/run \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/outrigger/audit \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/outrigger/state
# The app makes its socket in `run`, which only it writes to; the group, which the socket inherits, is the proxy's, which connects to it.

COPY --from=build /src/target/release/outrigger /src/target/release/outrigger-app /usr/local/bin/
COPY --chmod=0755 deploy/watchdog.py /usr/local/bin/outrigger-watchdog
COPY supervisord.conf /etc/supervisord.conf
COPY deploy/users.conf /etc/outrigger/supervisor/users.conf
COPY config/proxy.toml /etc/outrigger/proxy.toml

# Not below /run: Fly mounts an empty file system there.
ENV BIN_DIR=/usr/local/bin \
    RUN_DIR=/var/lib/outrigger/run \
    OUTRIGGER_APP_USER=outrigger-app \
    APP_SOCKET=/var/lib/outrigger/run/app.sock \
    APP_LISTEN=127.0.0.1:8081 \
    OUTRIGGER_CONFIG=/etc/outrigger/proxy.toml \
    OUTRIGGER_LISTEN=0.0.0.0:8080 \
    OUTRIGGER_ADMIN_LISTEN=0.0.0.0:9091 \
    OUTRIGGER_APP_ADDRESS=unix:/var/lib/outrigger/run/app.sock \
    OUTRIGGER_APP_METRICS=http://127.0.0.1:8081/metrics \
    OUTRIGGER_AUDIT_DIRECTORY=/var/lib/outrigger/audit \
    OUTRIGGER_STATE_DIRECTORY=/var/lib/outrigger/state

# No USER: supervisord starts as root, to start each program as its own.
WORKDIR /var/lib/outrigger
EXPOSE 8080 9091
# CMD, not ENTRYPOINT: Fly's release_command replaces a CMD, while an entrypoint would start everything twice.
CMD ["supervisord", "-c", "/etc/supervisord.conf"]
