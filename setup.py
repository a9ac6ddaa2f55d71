"All that is said here is said in settings.ini; the addresses of code and site are in pyproject.toml as well."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

ini = ConfigParser(delimiters=['='])
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
extras = {name: cfg[f'{name}_requirements'].split() for name in ('train', 'onnx', 'tables', 'jax', 'log', 'decide', 'docs', 'dev', 'integrations')}
for name in ('train', 'onnx', 'jax'): extras['integrations'] += extras[name]
extras['docs'] += extras['jax']                                       # signatures on the site are read from the modules
extras['dev'] += extras['train'] + extras['onnx'] + extras['tables'] + extras['decide'] + extras['docs']   # the tests run every notebook and build the site

setup(name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license_expression='Apache-2.0',
    long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=[cfg['lib_path'], cfg['lib_path']+'.*']), package_data={cfg['lib_path']: ['py.typed']}, zip_safe=False,
    python_requires='>='+cfg['min_python'], install_requires=cfg['requirements'].split(), extras_require=extras,
    entry_points=dict(console_scripts=cfg['console_scripts'].split(), nbdev=[f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]))
