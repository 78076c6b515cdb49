// dcmjs-dimse as an application entity: `node dcmjs.js scp '{...}'` serves until it is ended, `node dcmjs.js scu '{...}'` asks.
// What happens is said on standard output, one JSON object per line. The settings are described in tests/peers/dcmjs.py.
'use strict';

const fs = require('fs');
const path = require('path');
const { Client, Dataset, Scp, Server, association, constants, log, requests, responses } = require('dcmjs-dimse');

const { PresentationContextResult, RejectReason, RejectResult, RejectSource, SopClass, Status } = constants;
const [, , role, text] = process.argv;
const settings = JSON.parse(text);

log.setLevel('error');

function say(event, fields) {
  process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`);
}

function security(files) {
  if (!files) {
    return undefined;
  }
  return {
    key: fs.readFileSync(files.key),
    cert: fs.readFileSync(files.certificate),
    ca: fs.readFileSync(files.ca),
    requestCert: true,
    rejectUnauthorized: true,
  };
}

// What is sent, as it is sent: the library encodes every dataset anew.
function keepWhatIsSent(folder) {
  const encode = Dataset.prototype.getDenaturalizedDataset;
  Dataset.prototype.getDenaturalizedDataset = function (...options) {
    const encoded = encode.apply(this, options);
    const instance = this.getElement('SOPInstanceUID');
    if (instance) {
      fs.writeFileSync(path.join(folder, `${instance}.sent`), encoded);
    }
    return encoded;
  };
}

function matches(dataset, identifier) {
  return ['PatientID', 'StudyInstanceUID', 'SeriesInstanceUID', 'SOPInstanceUID'].every((keyword) => {
    const wanted = identifier.getElement(keyword);
    return wanted === undefined || wanted.length === 0 || dataset.getElement(keyword) === wanted;
  });
}

class Archive extends Scp {
  associationRequested(asked) {
    this.association = asked;
    const identity = asked.getNegotiateUserIdentity() ? asked.getUserIdentityPrimaryField() : undefined;
    say('association', { calling: asked.getCallingAeTitle(), called: asked.getCalledAeTitle(), identity });
    if (asked.getCalledAeTitle() !== settings.ae_title) {
      this.sendAssociationReject(RejectResult.Permanent, RejectSource.ServiceUser, RejectReason.CalledAeNotRecognized);
      return;
    }
    if (identity !== undefined && asked.getUserIdentityPositiveResponseRequested()) {
      asked.setUserIdentityServerResponse('');
      asked.setNegotiateUserIdentityServerResponse(true);
    }
    for (const { id } of asked.getPresentationContexts()) {
      const context = asked.getPresentationContext(id);
      const isKnown = context.getAbstractSyntaxUid() !== SopClass.ModalityWorklistInformationModelFind;
      context.setResult(
        isKnown ? PresentationContextResult.Accept : PresentationContextResult.RejectAbstractSyntaxNotSupported,
        context.getTransferSyntaxUids()[0]
      );
    }
    this.sendAssociationAccept();
  }

  associationReleaseRequested() {
    say('released', {});
    this.sendAssociationReleaseResponse();
  }

  abort(source, reason) {
    say('aborted', { source, reason });
  }

  cEchoRequest(request, callback) {
    const response = responses.CEchoResponse.fromRequest(request);
    response.setStatus(Status.Success);
    callback(response);
  }

  // Bytes are kept as they come; what the library reads in them is told beside.
  createDatasetFromStoreWritableStream(writable, context, callback) {
    this.encoded = Buffer.from(writable.toBuffer());
    this.syntax = context.getAcceptedTransferSyntaxUid();
    super.createDatasetFromStoreWritableStream(writable, context, callback);
  }

  cStoreRequest(request, callback) {
    const instance = request.getAffectedSopInstanceUid();
    fs.writeFileSync(path.join(settings.directory, `${instance}.dataset`), this.encoded);
    const dataset = request.getDataset();
    say('stored', { instance, syntax: this.syntax, read: dataset.getElement('SOPInstanceUID') });
    const response = responses.CStoreResponse.fromRequest(request);
    response.setStatus(Status.Success);
    callback(response);
  }

  cFindRequest(request, callback) {
    const identifier = request.getDataset();
    const level = identifier.getElement('QueryRetrieveLevel');
    const found = new Map();
    for (const dataset of held) {
      if (matches(dataset, identifier)) {
        const key = dataset.getElement(level === 'IMAGE' ? 'SOPInstanceUID' : 'StudyInstanceUID');
        const answer = { QueryRetrieveLevel: level };
        for (const keyword of Object.keys(identifier.getElements())) {
          answer[keyword] = keyword in answer ? answer[keyword] : dataset.getElement(keyword) || '';
        }
        found.set(key, answer);
      }
    }
    const respond = (status, elements) => {
      const response = responses.CFindResponse.fromRequest(request);
      response.setStatus(status);
      if (elements) {
        response.setDataset(new Dataset(elements));
      }
      return response;
    };
    if (settings.endless) {
      this.cancelled = false;
      const next = () => {
        if (this.cancelled || this.socket.destroyed) {
          callback([respond(Status.Cancel)]);
        } else {
          found.forEach((elements) => this.sendResponse(request, respond(Status.Pending, elements)));
          setTimeout(next, 5);
        }
      };
      next();
      return;
    }
    callback([...[...found.values()].map((elements) => respond(Status.Pending, elements)), respond(Status.Success)]);
  }

  cCancelRequest(request) {
    say('cancelled', { message: request.getMessageIdBeingRespondedTo() });
    this.cancelled = true;
  }

  // A callback may be called once, with what is last.
  cGetRequest(request, callback) {
    this.retrieve(request, callback, responses.CGetResponse, (stores, done) => {
      this.once('done', done);
      this.sendRequests(stores);
    });
  }

  cMoveRequest(request, callback) {
    const destination = settings.destinations[request.getCommandDataset().getElement('MoveDestination')];
    if (!destination) {
      const response = responses.CMoveResponse.fromRequest(request);
      response.setStatus(Status.MoveDestinationUnknown);
      callback([response]);
      return;
    }
    this.retrieve(request, callback, responses.CMoveResponse, (stores, done) => {
      const client = new Client();
      stores.forEach((store) => client.addRequest(store));
      client.on('networkError', (error) => say('error', { message: error.message }));
      client.on('closed', done);
      client.send(destination[0], destination[1], settings.ae_title, request.getCommandDataset().getElement('MoveDestination'));
    });
  }

  retrieve(request, callback, Response, send) {
    const chosen = held.filter((dataset) => matches(dataset, request.getDataset()));
    let completed = 0;
    let failed = 0;
    const respond = (status) => {
      const response = Response.fromRequest(request);
      response.setStatus(status);
      response.setRemaining(chosen.length - completed - failed);
      response.setCompleted(completed);
      response.setFailures(failed);
      response.setWarnings(0);
      return response;
    };
    const stores = chosen.map((dataset) => {
      const store = new requests.CStoreRequest(dataset);
      store.on('response', (response) => {
        if (response.getStatus() === Status.Success) {
          completed += 1;
        } else {
          failed += 1;
        }
        this.sendResponse(request, respond(Status.Pending));
      });
      return store;
    });
    send(stores, () => callback([respond(completed < chosen.length ? Status.ProcessingFailure : Status.Success)]));
  }
}

let held = [];

function serve() {
  held = settings.instances.map((file) => Dataset.fromFile(file));
  keepWhatIsSent(settings.directory);
  const server = new Server(Archive);
  server.on('networkError', (error) => say('error', { message: error.message }));
  server.listen({ host: settings.host, port: settings.port }, { securityOptions: security(settings.tls) });
}

function ask() {
  keepWhatIsSent(settings.directory);
  const client = new Client();
  const abort = () => {
    // Its next step would be to ask for release.
    client.network.removeAllListeners('done');
    client.abort();
    client.network.socket.end();
  };
  for (const operation of settings.operations) {
    const request = {
      echo: () => new requests.CEchoRequest(),
      store: () => new requests.CStoreRequest(operation.file),
      find: () => requests.CFindRequest.createStudyFindRequest(operation.keys),
      get: () => requests.CGetRequest.createStudyGetRequest(operation.study),
    }[operation.name]();
    request.on('response', (response) => {
      const dataset = response.getDataset();
      say('response', {
        operation: operation.name,
        status: response.getStatus(),
        elements: dataset ? dataset.getElements() : undefined,
      });
      if (operation.abort) {
        abort();
      }
    });
    client.addRequest(request);
  }
  for (const [abstractSyntax, transferSyntaxes] of settings.contexts) {
    const context = new association.PresentationContext(0, abstractSyntax);
    transferSyntaxes.forEach((syntax) => context.addTransferSyntaxUid(syntax));
    client.addAdditionalPresentationContext(context);
  }
  client.on('associationAccepted', (accepted) => {
    const operations = [accepted.getMaxAsyncOpsInvoked(), accepted.getMaxAsyncOpsPerformed()];
    say('accepted', { version: accepted.getImplementationVersion(), operations });
  });
  client.on('associationRejected', (rejection) => say('rejected', rejection));
  client.on('associationReleased', () => say('released', {}));
  client.on('networkError', (error) => say('error', { message: error.message }));
  client.on('cStoreRequest', (request, callback) => {
    say('received', { instance: request.getAffectedSopInstanceUid(), read: request.getDataset().getElement('SOPInstanceUID') });
    const response = responses.CStoreResponse.fromRequest(request);
    response.setStatus(Status.Success);
    callback(response);
  });
  client.send(settings.host, settings.port, settings.calling, settings.called, {
    securityOptions: security(settings.tls),
    asyncOps: settings.asynchronous ? { maxAsyncOpsInvoked: 8, maxAsyncOpsPerformed: 8 } : undefined,
    userIdentity: settings.user_name ? { type: constants.UserIdentityType.Username, primaryField: settings.user_name } : undefined,
  });
}

if (role === 'scp') {
  serve();
} else {
  ask();
}
