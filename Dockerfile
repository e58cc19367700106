# One static binary that draws, run as a user without rights:
#
#   docker build -t tessera .
#   docker run --rm -p 127.0.0.1:8080:8080 tessera

FROM rust:1.95-alpine AS build
RUN apk add --no-cache musl-dev gcc make
WORKDIR /src
COPY . .
# Alpine's own target is musl, which is linked statically.
RUN cargo build --release --locked --package tessera-cli && strip target/release/tessera

FROM scratch
COPY --from=build /src/target/release/tessera /tessera
COPY LICENSE-MIT LICENSE-APACHE /
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/tessera"]
# Inside a container, 127.0.0.1 is the container alone; what the world sees is decided by -p.
CMD ["serve", "--bind", "0.0.0.0:8080", "--log", "json"]
