import time
from small_datasets import *
from bharateo.training.loop import pretrain
from bharateo.evaluation.evaluate import evaluate
from bharateo.evaluation.reconstruction import examples
def test_try(tmp_path):
    for sensor in (WORLDCOVER_PALETTE, many_bands(4)):
        t=time.time(); ds = small_dataset(tmp_path/sensor.name, sensor); print('build', time.time()-t, ds.info['splits'])
        for m in ('v0','seed'):
            t=time.time(); run = pretrain(ds, small_config(m), tmp_path/(sensor.name+m)); print('train', time.time()-t)
            t=time.time(); r = evaluate(run, ds, tmp_path/'e.json'); print('eval', time.time()-t)
            print((tmp_path/(sensor.name+m)/'history.jsonl').read_text())
            examples(run, ds, 'test', 4)
