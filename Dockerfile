# A CPU image with the command line; runs and MLflow's store go to the folder that is mounted at /work:
#     docker build -t lightning-posttrain .
#     docker run --rm --user "$(id -u)" -v "$PWD:/work" lightning-posttrain fit --config configs/grpo.yaml
# PyTorch's own index has builds without CUDA, which make the image some gigabytes smaller: add
# --build-arg PIP_EXTRA_INDEX_URL=<the address of its CPU wheels>.
FROM python:3.11-slim AS wheel
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel /source

FROM python:3.11-slim
ARG PIP_EXTRA_INDEX_URL
COPY constraints.txt /opt/
COPY --from=wheel /wheel /opt/wheel
RUN pip install --no-cache-dir -c /opt/constraints.txt /opt/wheel/*.whl && rm -r /opt/wheel
# The user may be any: caches and settings of libraries go to /tmp.
ENV OMP_NUM_THREADS=1 HOME=/tmp LIGHTNING_POSTTRAIN_CACHE=/tmp/cache
WORKDIR /work
USER 1000
ENTRYPOINT ["lightning-posttrain"]
CMD ["--help"]
