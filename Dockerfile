FROM python:3.11-slim
# The small build of PyTorch, as a server needs no GPU.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch==2.13.0
WORKDIR /mag
COPY . .
RUN pip install --no-cache-dir '.[online]' && useradd --create-home mag
USER mag
ENTRYPOINT ["mag"]
