import hashlib


def hash_file(path: str, algorithm: str = 'blake2b') -> str:
    r"""Returns the hash of a file's content in hexadecimal digits."""
    digest = hashlib.new(algorithm)
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
