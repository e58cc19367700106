# An image with one static binary, which runs as an unprivileged user:
#
#   docker build -t tessera .
#   docker run --rm -p 127.0.0.1:8080:8080 tessera

FROM rust:1.95-alpine AS build
RUN apk add --no-cache musl-dev gcc make
WORKDIR /src
COPY . .
# On Alpine, Rust's default target is musl, which is linked statically.
RUN cargo build --release --locked --package tessera-cli && strip target/release/tessera

FROM scratch
COPY --from=build /src/target/release/tessera /tessera
COPY LICENSE-MIT LICENSE-APACHE /
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/tessera"]
# A server that listens on 127.0.0.1 could be reached only from inside the container. The option -p
# of `docker run` decides from where it can be reached.
CMD ["serve", "--bind", "0.0.0.0:8080", "--log", "json"]
