# netweft's images. Build one with:
#
#   docker build --target operator -t netweft/operator .
#   docker build --target agent -t netweft/agent .
#   docker build --target udp-relay -t netweft/udp-relay .
#   docker build --target bird -t netweft/bird:2.20.0 .      (the version of BIRD: bird.image.tag of the chart)
#   docker build --target testbox -t netweft/testbox .       (for tests and the demo only)
#
# Programs and bases are stages that an argument can replace by images made elsewhere: e2e/cluster/images.sh does that on
# a machine that reaches no registry. Therefore the final stages only copy. BuildKit is needed (the default since docker 23,
# DOCKER_BUILDKIT=1 before).
ARG RUST_IMAGE=rust:1.95-bookworm
ARG GO_IMAGE=golang:1.26-bookworm
ARG DEBIAN_IMAGE=debian:bookworm-slim
# The first Debian with a BIRD that is new enough (2.19.2).
ARG BIRD_DEBIAN_IMAGE=debian:forky-slim
# The stage or image that has the programs at /.
ARG BINARIES=built
# The stage or image with BIRD.
ARG BIRD_BASE=bird-base
# The stage or image with nft and BIRD.
ARG AGENT_BASE=agent-base
# The stage or image with busybox and its links.
ARG TESTBOX_BASE=testbox-base

# ---- programs

FROM ${RUST_IMAGE} AS rust-build
WORKDIR /src
COPY . .
# Static, so that they run on nodes of any distribution; how is in .cargo/config.toml, which names the target.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --target "$(rustc --print host-tuple)" \
      --bin netweft-operator --bin netweft-agent --bin netweft --bin netweft-udp-relay --bin netweft-probe \
    && mkdir /out \
    && cd "target/$(rustc --print host-tuple)/release" \
    && cp netweft-operator netweft-agent netweft netweft-udp-relay netweft-probe /out/

FROM ${GO_IMAGE} AS chained-build
WORKDIR /src
COPY cni/chained/ .
RUN CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags="-s -w" -o /out/ tool \
    && for plugin in bandwidth loopback portmap; do mv "/out/$plugin" "/out/netweft-$plugin"; done

FROM scratch AS built
COPY --from=rust-build /out/ /
COPY --from=chained-build /out/ /

FROM ${BINARIES} AS binaries

# ---- bases

FROM ${BIRD_DEBIAN_IMAGE} AS bird-base
RUN apt-get update \
    && apt-get install -y --no-install-recommends bird2 systemd-standalone-sysusers \
    && rm -rf /var/lib/apt/lists/*

# The agent tries what it has written for BIRD on a BIRD of its own, which brings its libraries: nft is not to be of a newer
# Debian, because what it gives the kernel has to be read by others' nft too. (1.0.6, which kube-proxy may have, dies of a table
# that 1.1 has made.)
FROM bird-base AS bird-alone
RUN mkdir -p /out/lib \
    && cp /usr/sbin/bird /out/ \
    && ldd /usr/sbin/bird | awk '$2 == "=>" { print $3 }' | xargs -I{} cp -L {} /out/lib/ \
    && cp -L "$(ldd /usr/sbin/bird | awk '$1 ~ /^\/.*ld-linux/ { print $1 }')" /out/ld.so

FROM ${DEBIAN_IMAGE} AS agent-base
RUN apt-get update \
    && apt-get install -y --no-install-recommends nftables \
    && rm -rf /var/lib/apt/lists/*
COPY --from=bird-alone /out/ /opt/bird/

FROM ${DEBIAN_IMAGE} AS testbox-build
RUN apt-get update \
    && apt-get install -y --no-install-recommends busybox-static \
    && mkdir -p /out/bin /out/etc \
    && install -d -m 1777 /out/tmp \
    && cp /bin/busybox /out/bin/ \
    && for applet in $(busybox --list | grep -vx busybox); do ln -s busybox "/out/bin/$applet"; done

FROM scratch AS testbox-base
COPY --from=testbox-build /out/ /
ENV PATH=/bin

# ---- the images

FROM scratch AS operator
COPY --from=binaries /netweft-operator /netweft-operator
ENTRYPOINT ["/netweft-operator"]

FROM ${AGENT_BASE} AS agent
COPY --from=binaries /netweft-agent /usr/local/bin/netweft-agent
# The plugins, for the agent to install on its node.
COPY --from=binaries /netweft /netweft-bandwidth /netweft-loopback /netweft-portmap /opt/netweft/cni/
ENTRYPOINT ["/usr/local/bin/netweft-agent"]

# BIRD as it is, and nothing else.
FROM ${BIRD_BASE} AS bird
ENTRYPOINT ["/usr/sbin/bird"]

FROM scratch AS udp-relay
COPY --from=binaries /netweft-udp-relay /netweft-udp-relay
ENTRYPOINT ["/netweft-udp-relay"]

FROM ${TESTBOX_BASE} AS testbox
COPY --from=binaries /netweft-probe /bin/netweft-probe
CMD ["/bin/sh"]
